"""What a worker does with a job: from the point that it was given to what the server subtracts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from swarmstep.errors import UsageError
from swarmstep.runtime.flat import Flat
from swarmstep.runtime.module_tensors import average_only
from swarmstep.seeding import mix, seed_torch

Loss = Callable[
    [nn.Module, int, int], Tensor
]  # (model, worker, step) -> the loss of that worker's batch of that step


class Work(ABC):
    """What a worker computes from a point x."""

    steps = 1  # local steps that a job takes, for the clock

    @abstractmethod
    def __call__(self, x: Tensor, worker: int, number: int, results: int, memory: dict[str, Any]) -> Tensor:
        """Return D [P], in the direction that is subtracted from x; changes only `memory`.

        Args:
            x: the point [P].
            worker: whose data it is.
            number: of the worker's job, from 0.
            results: that had come, of all workers, when the job was handed out: how far the run was.
            memory: the worker's own, empty at first: tensors and plain values that a checkpoint keeps.
        """

    def end(self, x: Tensor, worker: int, number: int, results: int, memory: dict[str, Any]) -> Tensor:
        """Return x' = x - D [P], where the work leads from x; arguments as above."""
        return x - self(x, worker, number, results, memory)


class Function(Work):
    """Work without a model: D = function(x, worker, number)."""

    def __init__(self, function: Callable[[Tensor, int, int], Tensor]) -> None:
        self._function = function

    def __call__(self, x: Tensor, worker: int, number: int, results: int, memory: dict[str, Any]) -> Tensor:
        return self._function(x, worker, number)


class Replica:
    """A model that computes for all workers of a process, one after another, each with its own x.

    Args:
        model: without running statistics, which no asynchronous method here would average.
        loss: called as loss(model, worker, step); what it draws from torch's global generator is a function of
            (seed, worker, step) alone.
        seed: see `loss`.

    Attributes:
        layers: the parameter tensors, in the order in which they lie in x.
        slices: of x, each layer's.

    Raises:
        UsageError: the model has floating-point buffers, or parameters that are averaged only; or as `Flat`.
    """

    def __init__(self, model: nn.Module, loss: Loss, seed: int = 0) -> None:
        self.model, self.flat = model, Flat(model)
        self._loss, self._seed = loss, seed
        layout = self.flat.layout
        if layout.averaged:
            raise UsageError(
                f"parameter {sorted(average_only(model))[0]!r} is averaged only, and asynchronous methods have no "
                "means of all workers; use rounds (Synchronizer), or an objective without a dual variable"
            )
        if layout.parameters != sum(layout.sizes):
            name = next(name for name, _ in model.named_buffers() if name in layout.names)
            raise UsageError(
                f"buffer {name!r}: asynchronous methods do not average running statistics; use layers without "
                "them, LayerNorm or GroupNorm in place of BatchNorm, or rounds (Synchronizer)"
            )

        own = dict(model.named_parameters())
        self.layers = [own[name] for name in layout.names]
        ends = [*accumulate(layout.sizes)]
        self.slices = [slice(end - size, end) for end, size in zip(ends, layout.sizes, strict=True)]

    def backward(self, worker: int, step: int) -> None:
        """Compute the gradients of a worker's loss at the model's present weights."""
        self.model.zero_grad(set_to_none=True)
        device = self.flat.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            seed_torch(mix(self._seed, worker, step), device)
            self._loss(self.model, worker, step).backward()


class Gradient(Work):
    """D = the gradient of one batch's loss.

    Args:
        model, loss, seed: as `Replica`; the step is the number of the worker's job.
    """

    def __init__(self, model: nn.Module, loss: Loss, seed: int = 0) -> None:
        self._replica = Replica(model, loss, seed)

    def __call__(self, x: Tensor, worker: int, number: int, results: int, memory: dict[str, Any]) -> Tensor:
        self._replica.flat.write(x)
        self._replica.backward(worker, number)
        return self._replica.flat.gradient()


class Displacement(Work):
    """D = x - x', x' after n local steps from x: the pseudo-gradient of DiLoCo.

    The inner optimizer's state is the worker's own and stays from job to job, as in DiLoCo.

    Args:
        model, loss, seed: as `Replica`; the worker's steps are counted over all of its jobs.
        steps: n, at least 1.
        optimizer: makes the inner optimizer of the model's parameters.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        steps: int,
        optimizer: Callable[[list[nn.Parameter]], Optimizer],
        seed: int = 0,
    ) -> None:
        if steps < 1:
            raise UsageError(f"steps: expected at least 1, found {steps}")
        self.steps = steps
        self._replica, self._optimizer = Replica(model, loss, seed), optimizer

    def __call__(self, x: Tensor, worker: int, number: int, results: int, memory: dict[str, Any]) -> Tensor:
        self._replica.flat.write(x)
        start = self._replica.flat.read()  # x as the model's dtype has it
        return start - self.end(x, worker, number, results, memory)

    def end(self, x: Tensor, worker: int, number: int, results: int, memory: dict[str, Any]) -> Tensor:
        replica = self._replica
        replica.flat.write(x)
        optimizer = self._optimizer([p for p in replica.model.parameters() if p.requires_grad])
        if memory:
            optimizer.load_state_dict(memory["optimizer"])
        for step in range(number * self.steps, (number + 1) * self.steps):
            replica.backward(worker, step)
            optimizer.step()
        memory["optimizer"] = optimizer.state_dict()
        return replica.flat.read()
