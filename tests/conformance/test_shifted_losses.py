"""A constant added to all losses and probes changes no decision, nor does a factor; a strange loss is harmless."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from helpers import VARIANTS, same
from swarmstep import PSOPS, Comm, Every, InformedSwarm, Options, Strategy, Synchronizer, simulate
from whole_runs import fast_if, fast_ones

WORKERS, STEPS = 3, 8
TRUST = {f"swarm:{mode}": InformedSwarm(trust=mode) for mode in ("uniform", "loss", "leave_one_out")}
STRATEGIES: dict[str, Strategy] = {
    **VARIANTS,
    **TRUST,
    "swarm:audit": InformedSwarm(audit=True),
    "pso-ps:ring": PSOPS(neighbours="ring", best="historical", best_decay=0.5),
}
MOVES = torch.randn(STEPS, WORKERS, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LOSSES = torch.randint(1, 64, (STEPS, WORKERS), generator=torch.Generator().manual_seed(1)) / 16


LOOK = [*TRUST, "swarm", "swarm:audit", "pso-ps", "pso-ps:ring"]  # at losses


def cases(numbers: list[float], but: str = "") -> list[Any]:
    """Return all strategies with all numbers; of those that look at no loss all but the first are slow."""
    return [
        fast_if(name in LOOK or number is numbers[0], name, number)
        for name in STRATEGIES
        for number in numbers
        if name != but
    ]


def squares(model: nn.Module) -> Tensor:
    """The probe, one of 8 losses for each weight, in steps of 1/1024, so that sums with a constant are exact."""
    return torch.cat([p.square().flatten() for p in model.parameters()]).mul(1024).round().div(1024)


def walk(strategy: Strategy, comm: Comm, shift: float = 0.0, scale: float = 1.0, bad: float | None = None) -> Any:
    """Move the weights by given steps; return them after each, what each round said, and the last state."""
    model = nn.Linear(3, 2).double()
    options = Options(probe=lambda m, step: (squares(m) + shift) * scale, probe_cost=0.01)
    sync = Synchronizer(model, dataclasses.replace(strategy, when=Every(1)), comm, options)
    seen: list[Any] = []
    for move, losses in zip(MOVES, LOSSES, strict=True):
        with torch.no_grad():
            for p, step in zip(model.parameters(), move[comm.rank].split([6, 2]), strict=True):
                p.mul_(0.9).add_(step.view(p.shape), alpha=2.0 if comm.rank == 2 else 0.2)  # rank 2 does harm
        if strategy.target == "gradients":
            model.zero_grad(set_to_none=False)
            sync.reduce(0.1)
        loss = (float(losses[comm.rank]) + shift) * scale
        landed: Any = sync.step(bad if bad is not None and comm.rank == 1 else loss, 0.1)
        weights = torch.cat([p.detach().flatten() for p in model.parameters()])
        seen.append((weights, [(d.rank, d.since) for d in landed.distrusted] if landed else None))
    sync.finish()
    return seen, [p.detach().clone() for p in model.parameters()]


@functools.cache
def plain(name: str) -> Any:
    """Return the walk with the losses as they are."""
    return simulate(lambda comm: walk(STRATEGIES[name], comm), WORKERS)


@pytest.mark.parametrize("name", fast_ones(LOOK, STRATEGIES))
@settings(max_examples=1)
@given(st.integers(-(2**20), 2**20))
def test_a_constant_changes_nothing(name: str, sixteenths: int) -> None:
    shifted = simulate(lambda comm: walk(STRATEGIES[name], comm, sixteenths / 16), WORKERS)
    assert same(shifted, plain(name))


@pytest.mark.parametrize(("name", "scale"), cases([2.0**100, 2.0**-100], but="swarm:loss"))
def test_nor_does_a_factor(name: str, scale: float) -> None:
    assert same(simulate(lambda comm: walk(STRATEGIES[name], comm, scale=scale), WORKERS), plain(name))


@pytest.mark.parametrize(("name", "bad"), cases([math.nan, -math.inf, 1e30, 0.0]))
def test_one_strange_loss_leaves_all_weights_finite(name: str, bad: float) -> None:
    for seen, result in simulate(lambda comm: walk(STRATEGIES[name], comm, bad=bad), WORKERS):
        assert all(weights.isfinite().all() for weights, _ in seen)
        assert all(p.isfinite().all() for p in result)


@pytest.mark.parametrize(("name", "level"), cases([0.0, -1.0, 1e30, 1e-30]))
def test_a_loss_and_a_probe_that_are_constant_tell_nobody_apart(name: str, level: float) -> None:
    def train(comm: Comm) -> tuple[list[int], Tensor]:
        model = nn.Linear(3, 2)
        options = Options(probe=lambda m, step: level, probe_cost=0.01)
        sync = Synchronizer(model, dataclasses.replace(STRATEGIES[name], when=Every(1)), comm, options)
        left_out: list[int] = []
        for _ in range(6):
            if STRATEGIES[name].target == "gradients":
                sync.reduce()
            landed: Any = sync.step(level, 0.1)
            left_out += [worker.rank for worker in landed.distrusted]
        return left_out, model.weight.detach()

    found = simulate(train, WORKERS)
    assert all(left_out == [] and weight.isfinite().all() for left_out, weight in found)


@pytest.mark.parametrize("shift", [0.0, -10.0, 1e4])
def test_a_worker_that_walks_the_wrong_way_is_found_whatever_the_level_of_the_probe(shift: float) -> None:
    def train(comm: Comm) -> list[int]:
        model = nn.Linear(1, 1, bias=False).double()
        nn.init.ones_(model.weight)
        options = Options(probe=lambda m, step: m.weight.square().sum() + shift, probe_cost=0.01)
        swarm = InformedSwarm(when=Every(1), social=0.1, inertia=0.0)
        sync, landed = Synchronizer(model, swarm, comm, options), None
        for _ in range(12):
            with torch.no_grad():
                model.weight += 0.05 if comm.rank == 3 else -0.02
            landed: Any = sync.step(1.0 + shift)
        return [worker.rank for worker in landed.distrusted]

    assert simulate(train, 4) == [[3]] * 4


def test_a_wrecker_is_vetoed_where_losses_are_negative() -> None:
    """One round is enough: what it does is far beyond what is usual, and without it there is no step back."""

    def train(comm: Comm) -> list[tuple[list[int], float]]:
        model = nn.Linear(8, 8, bias=False).double()
        nn.init.ones_(model.weight)
        options = Options(probe=lambda m, step: m.weight.square().mean() - 7.0, probe_cost=0.01)
        swarm = InformedSwarm(when=Every(1), social=1.0, inertia=0.0, gate=1e3)
        sync, seen = Synchronizer(model, swarm, comm, options), []
        for n in range(8):
            with torch.no_grad():
                model.weight *= 30.0 if comm.rank == 3 and n >= 4 else 0.9 + 0.01 * ((comm.rank + n) % 4)
            landed: Any = sync.step(-7.0)
            seen.append(([worker.rank for worker in landed.distrusted], float(model.weight.detach().mean())))
        return seen

    seen = simulate(train, 4)[0]
    assert [left_out for left_out, _ in seen[:4]] == [[]] * 4
    assert [left_out for left_out, _ in seen[4:]] == [[3]] * 4
    assert seen[-1][1] < 0.5
