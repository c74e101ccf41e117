"""What is legal but hardly meant: weights that nobody trains, workers that all see the same data."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from swarmstep import Comm, DiLoCo, Every, LocalSGD, Options, Strategy, Synchronizer, simulate

STILL, ALIKE = "the weights have not changed for 3 rounds", "have reported equal losses for 3 rounds"
Move = Callable[[nn.Linear, int], object]


def nothing(model: nn.Linear, step: int) -> None:
    pass


def by_optimizer(model: nn.Linear, step: int) -> None:
    model.weight.grad = torch.ones_like(model.weight)
    torch.optim.SGD([model.weight], 0.1).step()


def by_data(model: nn.Linear, step: int) -> None:
    """As old code does; torch does not count this."""
    model.weight.data += 0.1


def replaced(model: nn.Linear, step: int) -> None:
    model.weight = nn.Parameter(model.weight.detach() + 0.1)


def back_and_forth(model: nn.Linear, step: int) -> None:
    """The norm stays."""
    with torch.no_grad():
        model.weight.neg_()


def losses_differ(rank: int, step: int) -> float:
    return 1.0 / (1 + step) + rank


def warned(move: Move, loss: Any = losses_differ, strategy: Strategy | None = None, **given: Any) -> list[str]:
    lr = given.pop("lr", None)

    def train(comm: Comm) -> None:
        model = nn.Linear(2, 2)
        sync = Synchronizer(model, strategy or LocalSGD(when=Every(2)), comm, Options(**given))
        for step in range(12):
            move(model, step)
            sync.step(loss(comm.rank, step), lr=lr)
        sync.finish()

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        simulate(train, 2)
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize("views", [False, True])
def test_weights_that_stand_still_while_losses_come_in(views: bool) -> None:
    found = warned(nothing, views=views)
    assert len(found) == 2  # one for each worker, once
    assert all(STILL in said and "the one that the Synchronizer was given" in said for said in found)


@pytest.mark.parametrize("move", [by_optimizer, by_data, replaced, back_and_forth])
@pytest.mark.parametrize("strategy", [LocalSGD(when=Every(2)), DiLoCo(when=Every(1))])
def test_weights_that_move_are_fine(move: Move, strategy: Strategy) -> None:
    assert warned(move, strategy=strategy) == []


def test_a_rate_of_zero_and_losses_that_do_not_change_are_fine() -> None:
    assert warned(nothing, lr=0.0) == []
    assert warned(nothing, loss=lambda rank, step: float(rank)) == []


@pytest.mark.parametrize("given", [{"delay": 1}, {"delay": 2}])
def test_rounds_in_the_background_say_nothing(given: dict[str, Any]) -> None:
    assert warned(nothing, **given) == []


def test_equal_losses_on_all_ranks() -> None:
    (said,) = {*warned(by_optimizer, loss=lambda rank, step: 1.0 / (1 + step))}
    assert ALIKE in said
    assert "a shard of its own" in said


@pytest.mark.parametrize(
    "loss",
    [
        lambda rank, step: 1.0,
        lambda rank, step: float("inf"),
        lambda rank, step: 1.0 / (1 + step) + rank * 1e-5,
        lambda rank, step: 1.0 / (1 + step) + rank * (step in (4, 5, 10)),
    ],
)
def test_losses_that_differ_or_never_change_are_fine(loss: Any) -> None:
    assert warned(by_optimizer, loss=loss) == []
