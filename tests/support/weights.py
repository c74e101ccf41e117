"""Workers that take 4, 8 and 16 steps between rounds, weighted by examples, and the average computed by hand."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from swarmstep import Comm, Every, LocalSGD, Options, Round, Strategy, Synchronizer

STEPS = (4, 8, 16)  # between rounds, of each worker
EXAMPLES = (32, 8, 2)  # of one step
ROUNDS = 3
LR = 0.05
STOPS = ((2, 5, 11), (4, 8, 16), (7, 8, 31), (9, 23, 40))  # each worker's steps at which all are rebuilt


def batch(rank: int, step: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the inputs [B, 3] and targets [B] of a 1-based step."""
    rng = np.random.default_rng([rank, step])
    inputs = rng.normal(size=(EXAMPLES[rank], 3)) + rank
    return inputs, inputs @ np.arange(1.0, 4.0) + rng.normal(size=EXAMPLES[rank])


def by_hand(rounds: int = ROUNDS) -> NDArray[np.float64]:
    """Return the weights of linear least squares after the rounds: averaged by the examples of each worker."""
    x = np.zeros(3)
    for r in range(rounds):
        ends = []
        for rank, steps in enumerate(STEPS):
            own = x.copy()
            for step in range(r * steps + 1, (r + 1) * steps + 1):
                inputs, targets = batch(rank, step)
                own -= LR * 2 * inputs.T @ (inputs @ own - targets) / len(targets)
            ends.append(own)
        examples = [steps * each for steps, each in zip(STEPS, EXAMPLES, strict=True)]
        x = np.average(ends, axis=0, weights=examples)
    return x


class Worker:
    """A plain training loop in which each step counts as many examples as it has."""

    def __init__(self, comm: Comm, strategy: Strategy | None = None, **options: Any) -> None:
        self.rank, self.done = comm.rank, 0
        self.model = nn.Linear(3, 1, bias=False, dtype=torch.float64)
        nn.init.zeros_(self.model.weight)
        self.optimizer = torch.optim.SGD(self.model.parameters(), LR)
        self.sync = Synchronizer(self.model, strategy or LocalSGD(when=Every(STEPS)), comm, Options(**options))

    def step(self) -> Round | None:
        self.done += 1
        inputs, targets = (torch.tensor(array) for array in batch(self.rank, self.done))
        loss = (self.model(inputs).squeeze(1) - targets).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        event = self.sync.step(loss, LR, weight=len(targets))
        return event if isinstance(event, Round) else None

    def save(self) -> bytes:
        file = io.BytesIO()
        torch.save({"done": self.done, "model": self.model.state_dict(), "sync": self.sync.state_dict()}, file)
        return file.getvalue()

    def load(self, data: bytes) -> None:
        saved = torch.load(io.BytesIO(data), weights_only=True)
        self.done = saved["done"]
        self.model.load_state_dict(saved["model"])
        self.sync.load_state_dict(saved["sync"])


def train(
    comm: Comm,
    rounds: int = ROUNDS,
    resume: bool = False,
    strategy: Strategy | None = None,
    options: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Be one of the three; with `resume` everything is rebuilt from a checkpoint at each of STOPS."""
    stops = [stop[comm.rank] for stop in STOPS] if resume else []
    worker, reports = Worker(comm, strategy, **(options or {})), list[Round]()
    for _ in range(rounds * STEPS[comm.rank]):
        report = worker.step()
        if report:
            reports.append(report)
        for _ in range(stops.count(worker.done)):
            saved = worker.save()
            worker = Worker(comm, strategy, **(options or {}))
            worker.load(saved)
    worker.sync.finish()
    return {
        "x": worker.model.weight.detach().flatten().numpy(),
        "steps": [report.step for report in reports],
        "weights": [report.weights for report in reports],
        "seconds": [(r.compute_seconds, r.wait_seconds, r.send_seconds) for r in reports],
    }
