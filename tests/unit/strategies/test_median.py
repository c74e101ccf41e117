"""The coordinate-wise median against NumPy's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rounds import game, play
from swarmstep import Comm, CoordinateMedian, Every, Never, Options, Synchronizer, simulate
from swarmstep.errors import NotFinite


@pytest.mark.parametrize("workers", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("finished", [{}, {0: 2}])
def test_oracle(workers: int, finished: dict[int, int]) -> None:
    g = game(workers, finished=finished if workers > 1 else {})
    x = g.start
    for r, drift in enumerate(g.drift):
        here = [i for i in range(workers) if not g.absent(r, i)]
        x = np.median(x + drift[here], axis=0)
        np.testing.assert_allclose(play(CoordinateMedian(), g).weights[r], np.tile(x, (workers, 1)), atol=1e-12)


def test_a_minority_cannot_leave_the_range_of_the_others() -> None:
    g = game(5, rounds=1)
    g.drift[0, 1], g.drift[0, 4] = 1e9, -1e9
    honest = g.start + g.drift[0, [0, 2, 3]]
    result = play(CoordinateMedian(), g).weights[0, 0]
    assert (result >= honest.min(axis=0)).all()
    assert (result <= honest.max(axis=0)).all()


def linear(value: float) -> torch.nn.Linear:
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(model.weight, value)
    return model


@pytest.mark.parametrize("when", [Every(1), Never()])
def test_a_worker_that_is_not_finite_does_not_count(when: Every | Never) -> None:
    def train(comm: Comm) -> float:
        model = linear(0.0)
        sync = Synchronizer(model, CoordinateMedian(when=when), comm, Options())
        torch.nn.init.constant_(model.weight, [1.0, float("nan"), 3.0, 4.0][comm.rank])
        sync.step(1.0)
        sync.finish()
        return model.weight.item()

    assert simulate(train, 4) == [3.0] * 4


def test_all_not_finite_is_an_error() -> None:
    def train(comm: Comm) -> None:
        model = linear(0.0)
        sync = Synchronizer(model, CoordinateMedian(when=Every(1)), comm)
        torch.nn.init.constant_(model.weight, float("inf"))
        sync.step(1.0)

    with pytest.raises(NotFinite):
        simulate(train, 2)
