"""PAPA against its equation."""

from __future__ import annotations

import numpy as np
import pytest

from rounds import Array, Game, game, play, weighted
from swarmstep import PAPA
from swarmstep.errors import UsageError


def oracle(g: Game, a: float) -> Array:
    x, history, highest = np.tile(g.start, (g.workers, 1)), [], 0.0
    for r, drift in enumerate(g.drift):
        here = [i for i in range(g.workers) if not g.absent(r, i)]
        x[here] += drift[here]
        rate = g.rates[r]
        highest = max(highest, rate or 0.0)
        b = (1 - a) * (1.0 if rate is None else rate / highest)
        x = (1 - b) * x + b * g.mean(r, x)
        history.append(x.copy())
    return np.stack(history)


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("a", [0.99, 0.5, 0.0, 1.0])
def test_oracle(workers: int, a: float) -> None:
    g = game(workers, rates=[0.02, 0.1, 0.2, 0.15, 0.1, 0.01])
    weights = oracle(g, a)
    played = play(PAPA(a), g)
    np.testing.assert_allclose(played.weights, weights, atol=1e-12)
    np.testing.assert_allclose(played.results, np.tile(weights[-1].mean(axis=0), (workers, 1)), atol=1e-12)


@pytest.mark.parametrize("finished", [{}, {1: 2, 3: 4}])
def test_unequal_weights(finished: dict[int, int]) -> None:
    g = weighted(game(4, finished=finished))
    np.testing.assert_allclose(play(PAPA(0.7), g).weights, oracle(g, 0.7), atol=1e-12)


def test_finished_workers_take_the_others_rate() -> None:
    g = game(4, rates=[0.2, 0.2, 0.1, 0.05, 0.04, 0.03], finished={0: 2, 2: 3})
    np.testing.assert_allclose(play(PAPA(0.7), g).weights, oracle(g, 0.7), atol=1e-12)


@pytest.mark.parametrize("finished", [{}, {1: 3}])
def test_without_a_rate_it_is_constant(finished: dict[int, int]) -> None:
    told, untold = game(3, finished=finished), game(3, finished=finished, rates=[None] * 6)
    np.testing.assert_array_equal(play(PAPA(0.9), untold).weights, play(PAPA(0.9), told).weights)


def test_the_mean_stays() -> None:
    g = game(3)
    np.testing.assert_allclose(
        play(PAPA(0.9), g).weights.mean(axis=1), g.start + np.cumsum(g.drift.mean(axis=1), axis=0), atol=1e-12
    )


def test_range() -> None:
    with pytest.raises(UsageError, match="expected 0 to 1"):
        PAPA(1.5)
