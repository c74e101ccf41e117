"""A model with a parameter that is averaged only, and what its rounds should make of it."""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from helpers import Momentum, WeightedTrainer, network, options
from swarmstep import Comm, Strategy, Synchronizer, fault_points

NAME = "dual"


class WithDual(nn.Module):
    """The small network, and a bias of its outputs that is averaged only."""

    average_only = (NAME,)

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.net = network(seed)
        self.dual = nn.Parameter(torch.randn(3))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.net(inputs) + self.dual


class DualTrainer(WeightedTrainer):
    """Trains it; the weight of a step is 1 to 3."""

    def __init__(self, strategy: Strategy, comm: Comm, seed: int = 0, **given: Any) -> None:
        self.model = WithDual(seed + comm.rank)
        self.optimizer = Momentum(self.model.parameters())
        self.comm, self.seed, self.done = comm, seed, 0
        self.sync = Synchronizer(self.model, strategy, comm, options(seed, **given))

    @property
    def dual(self) -> Tensor:
        return self.model.dual.detach().clone()


class DualRun(NamedTuple):
    """What a run left: weights and dual after each step and at the end; of each round, what it averaged."""

    weights: list[Tensor]
    duals: list[Tensor]
    opened: dict[int, Tensor]  # the dual (or its gradient) when a round started, by step
    landed: dict[int, Tensor]  # the same after it, without a delay
    counted: dict[int, float]  # the weight of the round


def run(comm: Comm, strategy: Strategy, steps: int, resume: int = 0, **given: Any) -> DualRun:
    """Train; after step `resume`, if any, everything is thrown away and rebuilt from its checkpoint."""
    trainer = DualTrainer(strategy, comm, **given)
    found = DualRun([trainer.weights()], [trainer.dual], {}, {}, {})
    gradients = strategy.target == "gradients"

    def value() -> Tensor:
        grad = trainer.model.dual.grad
        return grad.clone() if gradients and grad is not None else trainer.dual

    def hook(point: str, **what: Any) -> None:
        if point == fault_points.ROUND_OPENED:
            found.opened[what["step"]] = value()
        if point == fault_points.LANDED:
            report = what["report"]
            found.landed[report.step], found.counted[report.step] = value(), report.weights[comm.rank]

    with contextlib.ExitStack() as stack:
        stack.enter_context(fault_points.interfering(hook))
        for _ in range(steps):
            trainer.step()
            found.weights.append(trainer.weights())
            found.duals.append(trainer.dual)
            if resume == trainer.done:
                saved = trainer.save()
                trainer = DualTrainer(strategy, comm, **given)
                trainer.load(saved)
        trainer.sync.finish()
    found.weights.append(trainer.weights())
    found.duals.append(trainer.dual)
    return found
