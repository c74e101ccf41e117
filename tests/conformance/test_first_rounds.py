"""Where the rounds of a part begin, and what is left of one that never had a round."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

from helpers import FOR_WEIGHTS
from swarmstep import (
    BMUF,
    EASGD,
    STRATEGIES,
    Comm,
    DiLoCo,
    Every,
    InformedSwarm,
    Never,
    Options,
    SlowMo,
    Strategy,
    Synchronizer,
    simulate,
)

ANCHORED = [DiLoCo(lr=1.0, momentum=0.0), SlowMo(), BMUF(), EASGD(beta=1.0), InformedSwarm()]


def walk(strategy: Strategy, comm: Comm, steps: int, n: int, fragments: int, **given: Any) -> Any:
    """Take steps of 1 + rank from 0; return the rounds as (step, part), and a weight of each part at the end."""
    model = nn.ModuleList(nn.Linear(1, 1, bias=False) for _ in range(4))
    for p in model.parameters():
        nn.init.zeros_(p)
    options = Options(fragments=fragments, **given)
    sync, rounds = Synchronizer(model, dataclasses.replace(strategy, when=Every(n)), comm, options), []
    for _ in range(steps):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(1.0 + comm.rank)
        sync.step(1.0, 0.1)
        rounds += [(landed.step, landed.fragment) for landed in sync.events() if not given]
    assert sync.result().isfinite().all()
    sync.finish()
    return rounds, [p.item() for p in list(model.parameters())[:fragments]]


def counted(comm: Comm, n: int, fragments: int) -> list[tuple[int, int]]:
    model = nn.ModuleList(nn.Linear(1, 1) for _ in range(fragments))
    sync = Synchronizer(model, DiLoCo(when=Every(n)), comm, Options(fragments=fragments))
    found: list[tuple[int, int]] = []
    for _ in range(3 * n):
        landed: Any = sync.step(1.0)
        found += [(landed.step, landed.fragment)] if landed else []
        found += [(event.step, event.fragment) for event in sync.events()]  # type: ignore[union-attr]
    return found


@pytest.mark.parametrize(("n", "fragments"), [(8, 2), (7, 3), (4, 4), (5, 1), (3, 3), (10, 4)])
def test_part_k_has_its_rounds_where_the_page_says(n: int, fragments: int) -> None:
    expected = [(t, k) for t in range(1, 3 * n + 1) for k in range(fragments) if (t - k * n // fragments) % n == 0]
    assert simulate(lambda comm: counted(comm, n, fragments), 2) == [expected] * 2


@pytest.mark.parametrize("strategy", ANCHORED, ids=lambda s: type(s).__name__)
def test_a_part_that_had_no_round_keeps_the_mean_of_what_was_trained(strategy: Strategy) -> None:
    for _, weights in simulate(lambda comm: walk(strategy, comm, 3, 8, 4), 2):
        assert weights[2:] == [4.5, 4.5]  # rounds at 4 and 6; part 1's is at 2
        assert weights[0] == 4.5  # at 8


@pytest.mark.parametrize("strategy", ANCHORED, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("given", [{}, {"views": False}, {"buffers": "local"}])
def test_so_does_a_model_that_had_none(strategy: Strategy, given: dict[str, Any]) -> None:
    for _, weights in simulate(lambda comm: walk(strategy, comm, 3, 8, 1, **given), 2):
        assert weights == [4.5]


@pytest.mark.parametrize("name", FOR_WEIGHTS)
def test_without_rounds_no_method_falls_back_to_the_start(name: str) -> None:
    def train(comm: Comm) -> float:
        model = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(model.weight)
        options = Options(probe=lambda m, step: 1.0)
        sync = Synchronizer(model, dataclasses.replace(STRATEGIES[name](), when=Never()), comm, options)
        for _ in range(3):
            with torch.no_grad():
                model.weight.add_(1.0 + comm.rank)
            sync.step(1.0)
        sync.finish()
        return model.weight.item()

    assert simulate(train, 2) == ([3.0, 6.0] if name == "independent" else [4.5, 4.5])


def test_the_last_round_still_decides_where_there_was_one() -> None:
    """As `DiLoCo` says: the steps after the last round are not in its result."""
    for _, weights in simulate(lambda comm: walk(DiLoCo(lr=1.0, momentum=0.0), comm, 11, 8, 2), 2):
        assert weights == [12.0, 6.0]


def test_a_worker_that_is_not_finite_is_left_out_of_the_mean() -> None:
    def train(comm: Comm) -> float:
        model = nn.Linear(1, 1, bias=False)
        sync = Synchronizer(model, InformedSwarm(when=Never()), comm)
        with torch.no_grad():
            model.weight.fill_(float("nan") if comm.rank == 1 else 2.0)
        sync.step(1.0)
        sync.finish()
        return model.weight.item()

    assert simulate(train, 3) == [2.0] * 3
