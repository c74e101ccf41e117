"""The coordinate-wise trimmed mean against NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from rounds import Array, game, play
from swarmstep import TrimmedMean
from swarmstep.errors import UsageError
from swarmstep.strategies.trimmed_mean import trimmed_mean


def trimmed(rows: Array, trim: float) -> Array:
    t = min(math.ceil(round(trim * len(rows), 9)), (len(rows) - 1) // 2)
    out = np.empty(rows.shape[1])
    for k in range(rows.shape[1]):
        values = sorted(rows[:, k])
        out[k] = sum(values[t : len(values) - t]) / (len(values) - 2 * t)
    return out


@pytest.mark.parametrize("workers", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("trim", [0.0, 0.1, 0.25, 0.5])
def test_oracle(workers: int, trim: float) -> None:
    g = game(workers, finished={0: 3} if workers > 1 else {})
    played, x = play(TrimmedMean(trim), g), g.start
    for r, drift in enumerate(g.drift):
        here = [i for i in range(workers) if not g.absent(r, i)]
        x = trimmed(x + drift[here], trim)
        np.testing.assert_allclose(played.weights[r], np.tile(x, (workers, 1)), atol=1e-12)
    np.testing.assert_allclose(played.results, played.weights[-1], atol=1e-12)


def test_limits_are_the_mean_and_the_median() -> None:
    g = game(5, rounds=1)
    x = g.start + g.drift[0]
    np.testing.assert_allclose(play(TrimmedMean(0.0), g).weights[0, 0], x.mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(play(TrimmedMean(0.5), g).weights[0, 0], np.median(x, axis=0), atol=1e-12)


def test_one_wild_worker_of_four_does_no_harm() -> None:
    g = game(4, rounds=1)
    g.drift[0, 2] = 1e9
    result = play(TrimmedMean(), g).weights[0, 0]
    assert np.abs(result).max() < 10


def test_rounding_cuts_nobody_more() -> None:
    """0.14 * 50 is a little above 7 in floating point."""
    rows = torch.arange(50.0)[:, None] ** 2
    torch.testing.assert_close(trimmed_mean(rows, 0.14), rows[7:43].mean(dim=0))


@pytest.mark.parametrize("trim", [-0.1, 0.6])
def test_range(trim: float) -> None:
    with pytest.raises(UsageError, match="trim"):
        TrimmedMean(trim)
