"""Workers whose work is balanced by given measurements, in one process or in many."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import runs
from swarmstep import Balance, Balanced, Comm, Every, LocalSGD, Synchronizer, Synchronous
from swarmstep.data.stream import Stream
from swarmstep.train.pace import Pace
from swarmstep.train.work_share import WorkShare

COSTS = (1.0, 2.0, 4.0)  # seconds of an example, or of a step, of each worker
EXAMPLES = 90
BATCH = 7  # on average
LR = 0.05


def data() -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(3)
    x = torch.randn(EXAMPLES, 4, generator=source, dtype=torch.float64)
    return x, x @ torch.arange(4.0, dtype=torch.float64) + 1.0


class Loop:
    """A training loop of one's own, by batch: a step takes the next 3 * BATCH examples, each worker its share."""

    def __init__(self, comm: Comm, strategy: Any) -> None:
        self.rank, self.done = comm.rank, 0
        self.model = nn.Linear(4, 1, dtype=torch.float64)
        for p in self.model.parameters():
            nn.init.zeros_(p)
        self.sync = Synchronizer(self.model, strategy, comm)
        self.balance = Balance(self.sync, batch=BATCH, smoothing=1.0)
        self.stream, (self.x, self.y) = Stream(EXAMPLES, 0), data()

    def step(self) -> None:
        shares = self.balance.shares
        first = self.done * sum(shares) + sum(shares[: self.rank])
        seen = self.stream.draw(first, first + self.balance.batch)
        self.done += 1
        loss = (self.model(self.x[seen]).squeeze(1) - self.y[seen]).square().mean()
        self.model.zero_grad()
        loss.backward()
        self.sync.reduce(weight=self.balance.batch)
        with torch.no_grad():
            for p in self.model.parameters():
                p -= LR * p.grad
        if self.sync.step(loss, weight=self.balance.batch):
            self.balance.measured([cost * b for cost, b in zip(COSTS, shares, strict=True)])

    def save(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "sync": self.sync.state_dict(),
            "balance": self.balance.state_dict(),
            "done": self.done,
        }

    def load(self, saved: dict[str, Any]) -> None:
        self.model.load_state_dict(saved["model"])
        self.sync.load_state_dict(saved["sync"])
        self.balance.load_state_dict(saved["balance"])
        self.done = saved["done"]

    def x_now(self) -> list[float]:
        return torch.cat([p.detach().flatten() for p in self.model.parameters()]).tolist()


def by_batch(comm: Comm, gradients: bool, steps: int = 12, cut: int = 0) -> tuple[list[float], tuple[int, ...]]:
    """Train so many steps, everything rebuilt from its checkpoint after `cut`; return weights and shares."""
    strategy = Synchronous() if gradients else LocalSGD(when=Every(3))
    loop = Loop(comm, strategy)
    for step in range(1, steps + 1):
        loop.step()
        if step == cut:
            saved = loop.save()
            loop = Loop(comm, strategy)
            loop.load(saved)
    loop.sync.finish()
    return loop.x_now(), loop.balance.shares


def by_steps(comm: Comm, rounds: int = 4) -> tuple[list[int], list[int], tuple[int, ...]]:
    """Take rounds of BATCH steps on average.

    Returns:
        The worker's own steps at which they landed, the run's steps after each of its own, and the shares.
    """
    sync = Synchronizer(nn.Linear(2, 1), LocalSGD(when=Balanced(BATCH)), comm)
    balance = Balance(sync)
    landed, run = list[int](), list[int]()
    while len(landed) < rounds:
        event = sync.step(1.0)
        run.append(sync.steps)
        if event:
            landed.append(len(run))
            balance.measured([cost * n for cost, n in zip(COSTS, balance.shares, strict=True)])
    sync.finish()
    return landed, run, balance.shares


def measured_as_given(comm: Comm, fields: dict[str, Any], out: str, job: dict[str, Any]) -> dict[str, Any]:
    """Be one worker of a run in real processes that measures what the simulation does."""
    cost = float(fields["speeds"].split(",")[comm.rank])
    original, WorkShare.worked = WorkShare.worked, lambda share, _: original(share, cost * _examples(share))
    wait, Pace.wait = Pace.wait, lambda *_: None
    try:
        return runs.one(comm, "classes", fields, out, job)
    finally:
        WorkShare.worked, Pace.wait = original, wait


def _examples(share: WorkShare) -> float:
    """Return the examples of the last step, as a share of the batch."""
    return share.weight / share._batch
