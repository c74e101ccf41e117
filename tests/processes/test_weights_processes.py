"""Workers with unequal numbers of steps and examples, as real processes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from helpers import UNEVEN, same, weighted_run
from pool import Pool
from swarmstep import STRATEGIES, Every, simulate
from weights import ROUNDS, by_hand, train
from whole_runs import WIRES, fast_ones


@pytest.mark.parametrize("resume", [False, True])
def test_real_processes_equal_the_average_by_hand_and_the_simulation(pool: Pool, resume: bool) -> None:
    expected = simulate(train, 3)
    for result, simulated in zip(pool.run(train, ROUNDS, resume, workers=3), expected, strict=True):
        np.testing.assert_allclose(result["x"], by_hand(), rtol=1e-12)
        assert (result["x"] == simulated["x"]).all()
        assert result["weights"] == simulated["weights"]
        assert result["steps"] == simulated["steps"]


def test_who_is_slow_is_seen_in_the_round(pool: Pool) -> None:
    """Real seconds: each worker reports three of them for all, the same on all ranks."""
    results = pool.run(train, ROUNDS, False, workers=3)
    assert all(result["seconds"] == results[0]["seconds"] for result in results)
    assert all(min(compute) > 0.0 for compute, _, _ in results[0]["seconds"])


@pytest.mark.parametrize("name", fast_ones(WIRES, STRATEGIES))
def test_unequal_steps_and_weights_equal_simulation_bitwise(pool: Pool, name: str) -> None:
    strategy = dataclasses.replace(STRATEGIES[name](), when=Every(UNEVEN))
    expected = simulate(lambda comm: weighted_run(comm, strategy), 3)
    assert same(pool.run(weighted_run, strategy, workers=3), expected)
