"""SlowMo against its equations."""

from __future__ import annotations

import numpy as np
import pytest

from rounds import Array, Game, game, play, weighted
from swarmstep import SlowMo
from swarmstep.errors import UsageError


def oracle(g: Game, a: float, b: float) -> Array:
    n = len(g.start) - g.buffers
    x, u, history = g.start.copy(), np.zeros(n), []
    for r, drift in enumerate(g.drift):
        m, rate = x + g.mean(r, drift), g.rates[r]
        assert rate is not None
        u = b * u + (x - m)[:n] / rate if rate else u
        x = np.concatenate([x[:n] - a * (rate * u if rate else (x - m)[:n]), m[n:]])
        history.append(x)
    return np.stack(history)


RATES = [0.1, 0.2, 0.2, 0.1, 0.05, 0.01]


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize(("a", "b"), [(1.0, 0.5), (0.7, 0.9), (1.0, 0.0)])
def test_oracle(workers: int, a: float, b: float) -> None:
    g = game(workers, rates=RATES, buffers=2)
    played = play(SlowMo(a, b), g)
    expected = oracle(g, a, b)
    for i in range(workers):
        np.testing.assert_allclose(played.weights[:, i], expected, atol=1e-12)
        np.testing.assert_allclose(played.results[i], expected[-1], atol=1e-12)


@pytest.mark.parametrize("finished", [{}, {1: 2, 3: 4}])
def test_unequal_weights(finished: dict[int, int]) -> None:
    g = weighted(game(4, buffers=2, finished=finished))
    played, expected = play(SlowMo(0.7, 0.9), g), oracle(g, 0.7, 0.9)
    for i in range(4):
        np.testing.assert_allclose(played.weights[:, i], expected, atol=1e-12)


def test_finished_workers_use_the_others_rate() -> None:
    g = game(4, rates=RATES, finished={0: 1, 2: 4})
    played, expected = play(SlowMo(), g), oracle(g, 1.0, 0.5)
    for i in range(4):
        np.testing.assert_allclose(played.weights[:, i], expected, atol=1e-12)


@pytest.mark.parametrize("finished", [{}, {1: 0}])
def test_a_rate_is_needed(finished: dict[int, int]) -> None:
    with pytest.raises(UsageError, match=r"step 1: SlowMo needs .* learning rate.*step\(loss, lr\)"):
        play(SlowMo(), game(2, rates=[None] * 6, finished=finished))


@pytest.mark.parametrize("rates", [[0.0, 0.1, 0.2, 0.1, 0.05, 0.0], [0.1, 0.0, 0.0, 0.1, 0.1, 0.1], [0.0] * 6])
def test_a_rate_of_zero_moves_by_the_step_alone(rates: list[float]) -> None:
    g = game(3, rates=rates, buffers=2)
    played = play(SlowMo(0.7, 0.9), g)
    np.testing.assert_allclose(played.weights[:, 0], oracle(g, 0.7, 0.9), atol=1e-12)


@pytest.mark.parametrize("fields", [{"momentum": 1.0}, {"slow_lr": -0.1}])
def test_ranges(fields: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(fields))):
        SlowMo(**fields)
