"""EDiT's penalties against their equations."""

from __future__ import annotations

import numpy as np
import pytest

from rounds import Array, Game, game, play
from swarmstep import DiLoCo, EDiT
from swarmstep.errors import UsageError

SIZES = (2, 5)  # of the tensors of a game


def oracle(g: Game, strategy: EDiT) -> tuple[Array, int]:
    """Return the common weights after each round, and how many of a worker's tensors were left out in all."""
    s, w = strategy.lr, strategy.momentum
    parts = np.split(np.arange(sum(SIZES)), np.cumsum(SIZES)[:-1])
    shape = g.workers, len(parts)
    x, u, history, gated = g.start.copy(), np.zeros(sum(SIZES)), [], 0
    mean, variance, rounds = np.zeros(shape), np.zeros(shape), np.zeros(g.workers, dtype=int)
    for r, drift in enumerate(g.drift):
        here = [i for i in range(g.workers) if not g.absent(r, i)]
        D = np.zeros(sum(SIZES))
        for k, part in enumerate(parts):
            length = {i: np.sqrt((drift[i, part] ** 2).sum()) for i in here}
            good = []
            for i in here:
                late = rounds[i] >= strategy.warm_up
                if late and length[i] - mean[i, k] > strategy.z * np.sqrt(variance[i, k]):
                    gated += 1
                else:
                    good.append(i)
            if good:
                e = np.array([np.exp(-length[i]) for i in good])
                D[part] = (e / e.sum()) @ drift[good][:, part]
            D[part] *= min(1.0, strategy.clip / max(np.sqrt((D[part] ** 2).sum()), 1e-300))
            for i in good:
                if rounds[i] == 0:
                    mean[i, k] = length[i]
                    continue
                d = length[i] - mean[i, k]
                mean[i, k] += strategy.rate * d
                variance[i, k] = (1 - strategy.rate) * (variance[i, k] + strategy.rate * d**2)
        rounds[here] += 1
        u = w * u + D
        x += s * (D + w * u)
        history.append(x.copy())
    return np.stack(history), gated


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("finished", [{}, {0: 2, 1: 4}])
def test_oracle(workers: int, finished: dict[int, int]) -> None:
    g = game(workers, rounds=12, finished=finished if workers > 2 else {})
    strategy = EDiT(z=0.5, warm_up=3, rate=0.3, clip=1.0)
    expected, gated = oracle(g, strategy)
    assert gated > 2 * workers  # the gate is at work
    played = play(strategy, g)
    for i in range(workers):
        np.testing.assert_allclose(played.weights[:, i], expected, atol=1e-12)
    np.testing.assert_allclose(played.results[0], expected[-1], atol=1e-12)


def test_equal_lengths_without_gate_and_clip_are_diloco() -> None:
    g = game(4, rounds=8)
    for part in (slice(0, 2), slice(2, 7)):
        g.drift[..., part] /= np.linalg.norm(g.drift[..., part], axis=-1, keepdims=True)
    found = play(EDiT(z=1000.0, clip=100.0), g).weights
    np.testing.assert_allclose(found, play(DiLoCo(0.7, 0.8), g).weights, atol=1e-12)


def test_a_worker_that_jumps_after_the_warm_up_does_not_move_the_others() -> None:
    g = game(4, rounds=30)
    jumps = game(4, rounds=30)
    jumps.drift[25, 2] *= 1e6
    calm = play(EDiT(warm_up=20, rate=0.1), jumps).weights
    assert np.abs(calm - play(EDiT(warm_up=20, rate=0.1), g).weights).max() < 3.0
    wild = play(DiLoCo(0.7, 0.8), jumps).weights
    assert np.abs(wild - play(DiLoCo(0.7, 0.8), g).weights).max() > 1e5


def test_where_nobody_counts_nothing_moves() -> None:
    g = game(3, rounds=6)
    g.drift[4:] *= 1e9
    found = play(EDiT(momentum=0.0, warm_up=2, z=1.0), g).weights
    np.testing.assert_array_equal(found[4], found[3])
    np.testing.assert_array_equal(found[5], found[3])


@pytest.mark.parametrize(
    "fields", [{"warm_up": 1}, {"clip": 0.0}, {"rate": 0.0}, {"z": -1.0}, {"momentum": 1.0}, {"lr": -0.1}]
)
def test_ranges(fields: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(fields))):
        EDiT(**fields)  # type: ignore[arg-type]
