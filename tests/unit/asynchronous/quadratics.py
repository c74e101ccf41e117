"""What the tests of the asynchronous methods train: quadratics, whose course is known, and a small network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from swarmstep.asynchronous import SERVER, AsGrad, Function, Outer, Simulator
from swarmstep.seeding import generator

ZERO = torch.zeros(1, dtype=torch.float64)
SECONDS = (1.0, 2.0, 3.0, 4.0)


def toward_own(x: Tensor, worker: int, number: int) -> Tensor:
    """The gradient of f_i = (x - i)^2 / 2."""
    return x - worker


FOUR = Function(toward_own)


def asgrad(lr: float = 0.1, workers: int = 4, **options: object) -> AsGrad:
    return AsGrad(workers, FOUR, Outer(lr), **options)  # type: ignore[arg-type]


def server(simulator: Simulator):
    return simulator.states[SERVER]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 1)).double()


def loss(model: nn.Module, worker: int, step: int) -> Tensor:
    inputs = torch.randn(16, 4, dtype=torch.float64, generator=generator("inputs", worker, step))
    return (model(inputs) - inputs.sum(1, keepdim=True).sin()).square().mean()
