"""What people use without swarmstep: the collectives of torch.distributed, and two libraries' averagers.

The only module of the benchmarks that speaks to torch.distributed. It works in the group that `DistComm.from_env`
has made, so all waits have its limits.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from swarmstep.comm.data_parallel import limited


def all_reduce(x: Tensor) -> None:
    """Sum x over all ranks, in place."""
    with limited("all-reduce"):
        dist.all_reduce(x)


def broadcast(x: Tensor) -> None:
    """Set x to that of rank 0."""
    with limited("broadcast"):
        dist.broadcast(x, 0)


def flatten_and_average(parameters: Sequence[nn.Parameter]) -> None:
    """Average a module's parameters as everybody would write it."""
    vector = parameters_to_vector(parameters)
    all_reduce(vector)
    vector /= dist.get_world_size()
    vector_to_parameters(vector, parameters)


def periodic_averager(module: nn.Module) -> Callable[[], None]:
    """Return what averages a module with torch's own PeriodicModelAverager."""
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)  # it passes over parameters without one
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a period of 1 is of no use in training
        averager = PeriodicModelAverager(period=1)

    def run() -> None:
        with limited("PeriodicModelAverager"):
            averager.average_parameters(module.parameters())

    return run


def accelerate_local_sgd(module: nn.Module) -> Callable[[], None]:
    """Return what averages a module with Accelerate's LocalSGD.

    Raises:
        ImportError: Accelerate is not installed.
    """
    accelerate: Any = importlib.import_module("accelerate")
    kind: Any = importlib.import_module("accelerate.local_sgd").LocalSGD
    averager = kind(accelerate.Accelerator(cpu=True), module, local_sgd_steps=1)

    def run() -> None:
        with limited("accelerate.LocalSGD"):
            averager.step()

    return run
