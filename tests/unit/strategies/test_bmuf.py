"""BMUF against its equations."""

from __future__ import annotations

import numpy as np
import pytest

from rounds import Array, Game, game, play, weighted
from swarmstep import BMUF
from swarmstep.errors import UsageError


def oracle(g: Game, w: float, z: float, nesterov: bool) -> tuple[Array, Array]:
    """What all workers have after each round, and the common model; buffers are the mean."""
    n = len(g.start) - g.buffers
    x, u, history = g.start.copy(), np.zeros(n), []
    y = x.copy()
    for r, drift in enumerate(g.drift):
        m = y + g.mean(r, drift)
        u = w * u + z * (m - y)[:n]
        x = np.concatenate([x[:n] + u, m[n:]])
        y = x.copy()
        if nesterov:
            y[:n] += w * u
        history.append(y)
    return np.stack(history), x


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("buffers", [0, 3])
def test_oracle(workers: int, nesterov: bool, buffers: int) -> None:
    g = game(workers, buffers=buffers)
    played = play(BMUF(momentum=0.8, block_lr=0.9, nesterov=nesterov), g)
    weights, model = oracle(g, 0.8, 0.9, nesterov)
    for i in range(workers):
        np.testing.assert_allclose(played.weights[:, i], weights, atol=1e-12)
        np.testing.assert_allclose(played.results[i], model, atol=1e-12)


@pytest.mark.parametrize("workers", [1, 4])
def test_default_momentum_follows_the_number_of_workers(workers: int) -> None:
    g = game(workers)
    np.testing.assert_allclose(
        play(BMUF(), g).weights[:, 0], oracle(g, 1 - 1 / workers, 1.0, False)[0], atol=1e-12
    )


@pytest.mark.parametrize("finished", [{}, {1: 2, 3: 4}])
def test_unequal_weights(finished: dict[int, int]) -> None:
    g = weighted(game(4, buffers=2, finished=finished))
    played, expected = play(BMUF(momentum=0.8, nesterov=True), g), oracle(g, 0.8, 1.0, True)[0]
    for i in range(4):
        np.testing.assert_allclose(played.weights[:, i], expected, atol=1e-12)


def test_finished_workers_follow() -> None:
    g = game(3, finished={1: 2})
    weights, _ = oracle(g, 0.5, 1.0, True)
    played = play(BMUF(momentum=0.5, nesterov=True), g).weights
    for i in range(3):
        np.testing.assert_allclose(played[:, i], weights, atol=1e-12)


@pytest.mark.parametrize("fields", [{"momentum": 1.0}, {"momentum": -0.1}, {"block_lr": -1.0}])
def test_ranges(fields: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(fields))):
        BMUF(**fields)
