"""The plain loop that every integration must equal, and what the tests of several share."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from swarmstep import Comm, DiLoCo, Every, Strategy, Synchronizer
from swarmstep.comm.group import Group

RULE = DiLoCo(when=Every(4))  # its state, anchor and velocity, must be in the checkpoints
ACCUMULATE = 2
LR = 0.01


def regression() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1))


def examples(comm: Comm, count: int) -> list[tuple[Tensor, Tensor]]:
    """Return a worker's own batches of 3 examples."""
    generator = torch.Generator().manual_seed(comm.rank)
    inputs = [torch.randn(3, 4, generator=generator) for _ in range(count)]
    return [(x, x.sum(dim=1, keepdim=True)) for x in inputs]


def squared(model: nn.Module, batch: Any) -> Tensor:
    inputs, targets = batch
    return nn.functional.mse_loss(model(inputs), targets)


def plain(
    comm: Group,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: list[Any],
    loss_of: Callable[[nn.Module, Any], Tensor] = squared,
    *,
    strategy: Strategy = RULE,
    accumulate: int = ACCUMULATE,
    schedule: Any = None,
    clip: float = 0.0,
) -> list[float]:
    """Train as docs/contract.md says, and return the model's parameters."""
    sync = Synchronizer(model, strategy, comm)
    for start in range(0, len(batches), accumulate):
        total = torch.zeros(())
        for batch in batches[start : start + accumulate]:
            loss = loss_of(model, batch) / accumulate
            loss.backward()
            total += loss.detach()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        sync.step(total, lr=optimizer)
        if schedule:
            schedule.step()
        optimizer.zero_grad()
    sync.finish()
    return numbers(model)


def numbers(model: nn.Module) -> list[float]:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters() if p.requires_grad]).tolist()


@contextmanager
def quiet() -> Iterator[None]:
    """The libraries' own warnings are not ours to mend."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
