"""Baselines without swarmstep: the collectives of torch.distributed, and the averagers of two libraries.

The only module of the benchmarks that uses torch.distributed. It works in the group that `DistComm.from_env` has
made, so its time limits apply to all waits.
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
    """Sum x over all ranks in place."""
    with limited("all-reduce"):
        dist.all_reduce(x)


def broadcast(x: Tensor) -> None:
    """Set x to that of rank 0."""
    with limited("broadcast"):
        dist.broadcast(x, 0)


def flatten_and_average(parameters: Sequence[nn.Parameter]) -> None:
    """Average a module's parameters in the straightforward way."""
    vector = parameters_to_vector(parameters)
    all_reduce(vector)
    vector /= dist.get_world_size()
    vector_to_parameters(vector, parameters)


def periodic_averager(module: nn.Module) -> Callable[[], None]:
    """Return a function that averages a module with torch's PeriodicModelAverager."""
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)  # it skips parameters without a gradient
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that a period of 1 is useless for training
        averager = PeriodicModelAverager(period=1)

    def run() -> None:
        with limited("PeriodicModelAverager"):
            averager.average_parameters(module.parameters())

    return run


def accelerate_local_sgd(module: nn.Module) -> Callable[[], None]:
    """Return a function that averages a module with Accelerate's LocalSGD.

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
