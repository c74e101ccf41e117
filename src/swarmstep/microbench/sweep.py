"""How many sweeps a recurrent network takes whose steps are cut over the workers: ``bench sweep``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from swarmstep.comm.group import Group
from swarmstep.comm.sim import simulate
from swarmstep.errors import UsageError
from swarmstep.microbench.checks import checked
from swarmstep.microbench.results import Figure, Report
from swarmstep.microbench.settings import SweepSettings
from swarmstep.microbench.workers import WorkerGroup
from swarmstep.parallel import sweep
from swarmstep.seeding import generator

BATCH, WIDTH = 16, 32  # of the inputs


def lead(settings: SweepSettings, group: WorkerGroup) -> Report:
    """Run the workers, in this process or in their own, and return their report."""
    ranges = {"length": (1, 10**5), "hidden": (1, 10**4), "gain": (0.0, 100.0), "tolerance": (0.0, 1.0)}
    checked(settings, workers=(1, 64), **ranges)
    if settings.length % settings.workers:
        raise UsageError(f"--length: expected a multiple of {settings.workers} workers, found {settings.length}")
    names = ("length", "hidden", "gain", "tolerance", "seed")
    of_workers = {name: getattr(settings, name) for name in names}
    if settings.backend == "sim":
        return simulate(lambda comm: work(comm, of_workers), settings.workers)[0]
    return group(settings.workers, of_workers)


def work(comm: Group, settings: Mapping[str, Any]) -> Report:
    """Sweep as one of the workers, and compare with one step after the other."""
    share = settings["length"] // comm.size
    cell, inputs, targets = problem(settings["length"], settings["hidden"], settings["gain"], settings["seed"])
    start, own = torch.zeros(BATCH, settings["hidden"]), slice(comm.rank * share, (comm.rank + 1) * share)
    states, gradient = one_after_the_other(cell, start, inputs, targets)
    report = Report()
    for segments in sorted({1, share}):
        cell.zero_grad()
        found = sweep(
            lambda h, x: cell(x, h),
            start,
            inputs[own],
            comm,
            segments=segments,
            tolerance=settings["tolerance"],
        )
        mine = torch.stack(found.states)
        back = found.backward(squares(mine, targets[own]))
        parts = [comm.mean(p.grad.flatten())[0] * comm.size for p in cell.parameters() if p.grad is not None]
        error = comm.gather((mine.detach() - states[own]).abs().max().double()).max()
        figures = {
            "sweeps forward": found.sweeps,
            "sweeps backward": back,
            "error of the states": float(error),
            "error of the gradient, relative": float((torch.cat(parts) - gradient).norm() / gradient.norm()),
        }
        name = f"{segments * comm.size} segments"
        report.figures += [Figure(f"{name}, {what}", comm.size, value) for what, value in figures.items()]
    return report


def squares(states: Tensor, targets: Tensor) -> Tensor:
    """Return the sum of the squared differences: a loss that is a sum over the steps."""
    return nn.functional.mse_loss(states, targets, reduction="sum")


def problem(length: int, hidden: int, gain: float, seed: int) -> tuple[nn.RNNCell, Tensor, Tensor]:
    """Return an untrained recurrent cell, inputs [T, B, 32] and targets [T, B, hidden]."""
    source = generator("sweep", seed)
    cell = nn.RNNCell(WIDTH, hidden)
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=source) / parameter.shape[-1] ** 0.5)
        cell.weight_hh *= gain / torch.linalg.matrix_norm(cell.weight_hh, 2)
    inputs = torch.randn(length, BATCH, WIDTH, generator=source)
    return cell, inputs, torch.randn(length, BATCH, hidden, generator=source)


def one_after_the_other(cell: nn.RNNCell, start: Tensor, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the states [T, B, hidden] and the gradient [P] as autograd gives it."""
    states = [start]
    for x in inputs:
        states.append(cell(x, states[-1]))
    result = torch.stack(states[1:])
    gradient = torch.autograd.grad(squares(result, targets), list(cell.parameters()))
    return result.detach(), torch.cat([g.flatten() for g in gradient])
