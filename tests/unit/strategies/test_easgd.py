"""EASGD against its equations."""

from __future__ import annotations

import numpy as np
import pytest

from rounds import Array, Game, game, play, weighted
from swarmstep import EASGD
from swarmstep.errors import UsageError


def oracle(g: Game, beta: float) -> tuple[Array, Array]:
    a = beta / g.workers
    x, centre, history = np.tile(g.start, (g.workers, 1)), g.start.copy(), []
    for r, drift in enumerate(g.drift):
        here = [i for i in range(g.workers) if not g.absent(r, i)]
        x[here] += drift[here]
        x, centre = x - a * (x - centre), centre + a * len(here) * (g.mean(r, x) - centre)
        history.append(x.copy())
    return np.stack(history), centre


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("beta", [0.9, 0.3])
def test_oracle(workers: int, beta: float) -> None:
    g = game(workers)
    weights, centre = oracle(g, beta)
    played = play(EASGD(beta), g)
    np.testing.assert_allclose(played.weights, weights, atol=1e-12)
    np.testing.assert_allclose(played.results, np.tile(centre, (workers, 1)), atol=1e-12)


def test_a_worker_that_has_finished_follows_and_gives_nothing() -> None:
    g = game(4, finished={1: 2, 3: 4})
    weights, centre = oracle(g, 0.9)
    played = play(EASGD(), g)
    np.testing.assert_allclose(played.weights, weights, atol=1e-12)
    np.testing.assert_allclose(played.results[0], centre, atol=1e-12)


@pytest.mark.parametrize("finished", [{}, {1: 2, 3: 4}])
def test_unequal_weights(finished: dict[int, int]) -> None:
    """They weigh in the centre; each worker's own string is as strong as before."""
    g = weighted(game(4, finished=finished))
    weights, centre = oracle(g, 0.6)
    played = play(EASGD(0.6), g)
    np.testing.assert_allclose(played.weights, weights, atol=1e-12)
    np.testing.assert_allclose(played.results, np.tile(centre, (4, 1)), atol=1e-12)


def test_the_centre_is_a_moving_average_of_the_mean() -> None:
    g = game(3, rounds=1)
    mean = g.start + g.drift[0].mean(axis=0)
    np.testing.assert_allclose(play(EASGD(0.6), g).results[0], 0.4 * g.start + 0.6 * mean, atol=1e-12)


def test_without_elasticity_workers_are_alone() -> None:
    g = game(3)
    expected = g.start + np.cumsum(g.drift, axis=0)
    np.testing.assert_allclose(play(EASGD(0.0), g).weights, expected, atol=1e-12)


@pytest.mark.parametrize("beta", [-0.1, 1.1, float("nan")])
def test_range(beta: float) -> None:
    with pytest.raises(UsageError, match="beta"):
        EASGD(beta)
