"""MNIST with networks whose computation is a sleep, which a busy machine hardly disturbs.

A step computes for `PACED_SECONDS` (default 0.5): a third in the forward pass, the rest in the backward pass,
before the gradients of its layer are there. So DistributedDataParallel overlaps as much as it could if the
processor really computed. The models have `PACED_MILLIONS` (default 1) of parameters, and differ in where these
are, seen from the computation.
"""

from __future__ import annotations

import dataclasses
import os
import time
from typing import Any

import torch
from torch import Tensor, nn

from swarmstep.workloads import mnist

SECONDS = float(os.environ.get("PACED_SECONDS", "0.5"))
MILLIONS = float(os.environ.get("PACED_MILLIONS", "1"))
HIDDEN = int(1240 * MILLIONS)
WIDTH = int(330 * MILLIONS**0.5)


class _Sleep(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, seconds: float) -> Tensor:
        ctx.seconds = seconds
        time.sleep(seconds / 3)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        time.sleep(2 * ctx.seconds / 3)
        return gradients[0], None


class Paced(nn.Module):
    """A layer that takes `seconds` in a training step."""

    def __init__(self, layer: nn.Module, seconds: float) -> None:
        super().__init__()
        self.layer, self.seconds = layer, seconds

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        return _Sleep.apply(y, self.seconds) if self.training else y


class Scale(nn.Module):
    """Multiplies each element by a parameter."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def first() -> nn.Module:
    """Return a hidden layer: parameters and computation in the first layer, whose gradient comes last."""
    return nn.Sequential(nn.Flatten(), Paced(nn.Linear(784, HIDDEN), SECONDS), nn.ReLU(), nn.Linear(HIDDEN, 10))


def even() -> nn.Module:
    """Return eight hidden layers: parameters and computation in all of them."""
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs in (784, *[WIDTH] * 7):
        seconds = SECONDS * inputs / (784 + WIDTH * 7)
        layers += [Paced(nn.Linear(inputs, WIDTH), seconds), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(WIDTH, 10))


def last() -> nn.Module:
    """Return a hidden layer behind the computation: the gradients of the parameters come first, as in a CNN."""
    front = Paced(Scale(784), SECONDS)
    return nn.Sequential(nn.Flatten(), front, nn.Linear(784, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 10))


workload = dataclasses.replace(mnist.load(), models={"first": first, "even": even, "last": last})
