"""Gossip on the exponential graph against its mixing matrices."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rounds import Array, Game, game, play
from swarmstep import GossipExponential


def oracle(g: Game) -> Array:
    x, history = np.tile(g.start, (g.workers, 1)), []
    for r, drift in enumerate(g.drift):
        here = [i for i in range(g.workers) if not g.absent(r, i)]
        x[here] += drift[here]
        old = x.copy()
        if g.workers > 1:
            d = 2 ** (r % math.ceil(math.log2(g.workers)))
            for i in range(g.workers):
                heard = [j for j in {i, (i - d) % g.workers} if j in here] or [i]
                x[i] = old[heard].mean(axis=0)
        history.append(x.copy())
    return np.stack(history)


@pytest.mark.parametrize("workers", [1, 2, 3, 4, 5, 8])
def test_oracle(workers: int) -> None:
    g = game(workers)
    expected = oracle(g)
    played = play(GossipExponential(), g)
    np.testing.assert_allclose(played.weights, expected, atol=1e-12)
    np.testing.assert_allclose(played.results[0], expected[-1].mean(axis=0), atol=1e-12)
    assert (played.sent == 7 * 8 * (workers > 1)).all()


def test_finished_workers() -> None:
    g = game(5, finished={1: 1, 4: 3})
    np.testing.assert_allclose(play(GossipExponential(), g).weights, oracle(g), atol=1e-12)


@pytest.mark.parametrize("workers", [2, 4, 8])
def test_a_power_of_two_agrees_after_log2_rounds(workers: int) -> None:
    g = game(workers, rounds=int(math.log2(workers)))
    g.drift[1:] = 0.0
    last = play(GossipExponential(), g).weights[-1]
    np.testing.assert_allclose(last, np.tile(g.start + g.drift[0].mean(axis=0), (workers, 1)), atol=1e-12)
