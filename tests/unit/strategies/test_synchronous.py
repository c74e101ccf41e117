"""Gradients averaged at every step, against the equation."""

from __future__ import annotations

import numpy as np
import pytest

from rounds import game, play, weighted
from swarmstep import Every
from swarmstep.strategies.synchronous import Synchronous


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("finished", [{}, {0: 3}])
def test_a_round_is_the_mean_of_the_gradients(workers: int, finished: dict[int, int]) -> None:
    """What `rounds` moves is the gradient here."""
    g = weighted(game(workers, finished=finished if workers > 1 else {}))
    played, x = play(Synchronous(), g), np.tile(g.start, (workers, 1))
    for r, drift in enumerate(g.drift):
        x += np.array([drift[i] * (not g.absent(r, i)) for i in range(workers)])
        x[:] = g.mean(r, x)
        np.testing.assert_allclose(played.weights[r], x, atol=1e-12)
    assert (played.results == played.weights[-1, 0]).all()


def test_it_works_on_gradients_at_every_step() -> None:
    assert Synchronous.target == "gradients"
    assert Synchronous().when == Every(1)
