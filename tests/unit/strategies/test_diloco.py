"""DiLoCo against its equations."""

from __future__ import annotations

import numpy as np
import pytest

from rounds import Array, Game, game, play, weighted
from swarmstep import DiLoCo, Every
from swarmstep.errors import UsageError


def oracle(g: Game, s: float, w: float) -> Array:
    n = len(g.start) - g.buffers
    x, u, history = g.start.copy(), np.zeros(n), []
    for r, drift in enumerate(g.drift):
        m = x + g.mean(r, drift)
        gradient = (x - m)[:n]
        u = w * u + gradient
        x = np.concatenate([x[:n] - s * (gradient + w * u), m[n:]])
        history.append(x)
    return np.stack(history)


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize(("lr", "momentum"), [(0.7, 0.9), (1.0, 0.0), (0.3, 0.5)])
@pytest.mark.parametrize("finished", [{}, {0: 3}])
def test_oracle(workers: int, lr: float, momentum: float, finished: dict[int, int]) -> None:
    g = game(workers, buffers=2, finished=finished if workers > 1 else {})
    played, expected = play(DiLoCo(lr, momentum), g), oracle(g, lr, momentum)
    for i in range(workers):
        np.testing.assert_allclose(played.weights[:, i], expected, atol=1e-12)
        np.testing.assert_allclose(played.results[i], expected[-1], atol=1e-12)


@pytest.mark.parametrize("finished", [{}, {1: 2, 3: 4}])
def test_unequal_weights(finished: dict[int, int]) -> None:
    g = weighted(game(4, buffers=2, finished=finished))
    played, expected = play(DiLoCo(), g), oracle(g, 0.7, 0.9)
    for i in range(4):
        np.testing.assert_allclose(played.weights[:, i], expected, atol=1e-12)


def test_defaults_are_the_papers() -> None:
    assert DiLoCo() == DiLoCo(lr=0.7, momentum=0.9, when=Every(500))


@pytest.mark.parametrize("fields", [{"momentum": 1.0}, {"lr": -0.1}])
def test_ranges(fields: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(fields))):
        DiLoCo(**fields)
