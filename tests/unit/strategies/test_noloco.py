"""NoLoCo against its equations."""

from __future__ import annotations

import numpy as np
import pytest

from rounds import Array, Game, game, play, weighted
from swarmstep import NoLoCo
from swarmstep.errors import UsageError
from swarmstep.strategies.parts.named_graphs import pairs


def oracle(g: Game, a: float, b: float, c: float) -> Array:
    """Follow the paper's form, with the displacement and the anchor averaged each for itself."""
    n, count = len(g.start) - g.buffers, g.workers
    z, x = np.tile(g.start, (count, 1)), np.tile(g.start, (count, 1))
    u, history = np.zeros((count, n)), []
    for r, drift in enumerate(g.drift):
        here = [i for i in range(count) if not g.absent(r, i)]
        x[here] += drift[here]
        partners, z_old = pairs(0, r + 1, count), z.copy()
        for i in range(count):
            group = [j for j in {i, partners[i]} if j in here] or [i]
            p = g.weights[r, group] / g.weights[r, group].sum()
            moved = p @ (x[group] - z_old[group])[:, :n]
            u[i] = b * u[i] + a * moved + c * (p @ z_old[group][:, :n] - z_old[i, :n])
            z[i, :n] = z_old[i, :n] + u[i]
            z[i, n:] = p @ x[group][:, n:]
        x = z.copy()
        history.append(x.copy())
    return np.stack(history)


@pytest.mark.parametrize("workers", [1, 2, 4, 5])
@pytest.mark.parametrize("gossip", [None, 0.3, 0.0])
@pytest.mark.parametrize("buffers", [0, 2])
def test_oracle(workers: int, gossip: float | None, buffers: int) -> None:
    g = game(workers, buffers=buffers)
    expected = oracle(g, 0.7, 0.5, 0.7 if gossip is None else gossip)
    played = play(NoLoCo(gossip=gossip), g)
    np.testing.assert_allclose(played.weights, expected, atol=1e-12)
    np.testing.assert_allclose(played.results[0], expected[-1].mean(axis=0), atol=1e-12)


def test_a_partner_that_has_finished_counts_for_nothing() -> None:
    g = game(5, finished={0: 1, 3: 2}, buffers=1)
    np.testing.assert_allclose(play(NoLoCo(), g).weights, oracle(g, 0.7, 0.5, 0.7), atol=1e-12)


@pytest.mark.parametrize("finished", [{}, {0: 1, 3: 2}])
def test_unequal_weights(finished: dict[int, int]) -> None:
    g = weighted(game(5, finished=finished, buffers=2))
    np.testing.assert_allclose(play(NoLoCo(gossip=0.3), g).weights, oracle(g, 0.7, 0.5, 0.3), atol=1e-12)


def test_with_lr_1_and_no_momentum_pairs_are_averaged() -> None:
    g = game(2)
    played = play(NoLoCo(lr=1.0, momentum=0.0), g).weights
    expected = g.start + np.cumsum(g.drift.mean(axis=1), axis=0)
    np.testing.assert_allclose(played[:, 0], expected, atol=1e-12)
    np.testing.assert_allclose(played[:, 1], expected, atol=1e-12)


def test_pairs_are_a_function_of_seed_and_step() -> None:
    for size in (1, 2, 5, 8):
        for step in range(20):
            partners = pairs(3, step, size)
            assert partners == pairs(3, step, size)
            assert [partners[j] for j in partners] == list(range(size))
            assert sum(i == j for i, j in enumerate(partners)) == size % 2
    assert len({tuple(pairs(0, step, 8)) for step in range(20)}) > 15
    assert pairs(0, 1, 8) != pairs(1, 1, 8)


def test_one_vector_travels() -> None:
    sent = play(NoLoCo(gossip=0.3), game(5)).sent
    assert (sent.sum(axis=1) == 4 * 7 * 8).all()


@pytest.mark.parametrize("fields", [{"momentum": 1.0}, {"lr": 0.0}, {"gossip": -0.1}])
def test_ranges(fields: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(fields))):
        NoLoCo(**fields)
