"""Workers with unequal numbers of steps and examples, in one process."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from swarmstep import BMUF, Comm, DiLoCo, Every, LocalSGD, SlowMo, Synchronizer, simulate
from swarmstep.errors import UsageError
from swarmstep.signal import Roll
from weights import EXAMPLES, ROUNDS, STEPS, by_hand, train


@pytest.mark.parametrize("resume", [False, True])
def test_unequal_steps_weighted_by_examples_equal_the_average_by_hand(resume: bool) -> None:
    for result in simulate(lambda comm: train(comm, resume=resume), 3):
        np.testing.assert_allclose(result["x"], by_hand(), rtol=1e-12)
        assert result["steps"] == [16 * (r + 1) for r in range(ROUNDS)]
        assert result["weights"] == [tuple(float(s * e) for s, e in zip(STEPS, EXAMPLES, strict=True))] * ROUNDS
        assert all(math.isfinite(x) and x >= 0.0 for row in result["seconds"] for part in row for x in part)


@pytest.mark.parametrize(
    "strategy",
    [
        DiLoCo(lr=1.0, momentum=0.0, when=Every(STEPS)),
        BMUF(momentum=0.0, when=Every(STEPS)),
        SlowMo(momentum=0.0, when=Every(STEPS)),
    ],
)
def test_outer_optimizers_that_do_nothing_average_by_examples(strategy: DiLoCo) -> None:
    (x, *_) = (result["x"] for result in simulate(lambda comm: train(comm, strategy=strategy), 3))
    np.testing.assert_allclose(x, by_hand(), rtol=1e-9)


def weights_of(values: list[float], losses: list[float]) -> list[float]:
    column, n = torch.tensor(values, dtype=torch.float64), len(values)
    numbers = torch.ones(n, dtype=torch.float64)
    roll = Roll(
        numbers, numbers, torch.tensor(losses, dtype=torch.float64), column, torch.zeros(n, 3), torch.zeros(n, 0)
    )
    return [roll.weight(rank) for rank in range(n)]


def test_weights_count_relative_to_the_largest_present() -> None:
    assert weights_of([4.0, 8.0, 16.0], [1.0, 1.0, 1.0]) == [0.25, 0.5, 1.0]
    assert weights_of([4.0, 8.0, 16.0], [1.0, 1.0, math.nan]) == [0.5, 1.0, 0.0]
    assert weights_of([3.0, 3.0], [math.inf, 1.0]) == [1.0, 1.0]
    assert weights_of([0.0, 0.0], [1.0, 1.0]) == [1.0, 1.0]


def one_step(comm: Comm, weight: float) -> None:
    Synchronizer(nn.Linear(2, 2), LocalSGD(when=Every(1)), comm).step(0.5, weight=weight)


@pytest.mark.parametrize("weight", [-1.0, math.nan, math.inf])
def test_a_weight_out_of_range_is_refused(weight: float) -> None:
    with pytest.raises(UsageError, match="expected a finite weight of at least 0"):
        simulate(lambda comm: one_step(comm, weight), 2)


def test_a_worker_without_examples_does_not_count() -> None:
    def run(comm: Comm) -> float:
        model = nn.Linear(1, 1, bias=False)
        sync = Synchronizer(model, LocalSGD(when=Every(1)), comm)
        model.weight.data.fill_(1.0 + comm.rank)
        sync.step(0.5, weight=float(comm.rank == 1))
        return model.weight.item()

    assert simulate(run, 3) == [2.0, 2.0, 2.0]


def test_as_many_numbers_of_steps_as_workers() -> None:
    with pytest.raises(UsageError, match="a number of steps for each of the 2 workers, found 3"):
        simulate(train, 2)
