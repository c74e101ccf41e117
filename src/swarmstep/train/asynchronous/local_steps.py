"""What a worker of an asynchronous run does with a job: n local steps, as in a run with rounds."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch import Tensor, nn

from swarmstep.asynchronous import Work
from swarmstep.asynchronous.work import Replica
from swarmstep.seeding import mix, seed_torch
from swarmstep.train.config import LAYUP, Config
from swarmstep.train.feed import Feed
from swarmstep.train.local_step import build_model, clip_gradient, learning_rate, measure_loss
from swarmstep.train.optimizer import build_optimizer
from swarmstep.train.pace import Pace
from swarmstep.workloads import Workload

CPU = torch.device("cpu")


class LocalSteps(Work):
    """n local steps from the given point, for any worker of this process.

    The learning rate follows the run: a job that was handed out after r results begins at the step r n / W of an
    equal worker. The optimizer's state is the worker's own.

    Args:
        config: resolved.
        workload: its data.
        pace: of the only worker of a real process (None: time is virtual, or nobody's).

    Attributes:
        steps: n.
        model: computes for all workers, one after another.
        x: the common start [P].
        losses: [W] each worker's mean loss in its last job in this process, NaN before.
        computed: seconds that the steps in this process took.
    """

    def __init__(self, config: Config, workload: Workload, pace: Pace | None = None) -> None:
        self.steps = 1 if config.strategy == LAYUP else config.every or 1
        self._config, self._workload = config, workload
        seed_torch(mix(config.seed, "model"), CPU)
        self.model: nn.Module = build_model(config, workload)
        self._flat = Replica(self.model, self.loss).flat  # which refuses models with running statistics
        self._optimizer = build_optimizer(self.model, config)
        self._feeds: dict[int, Feed] = {}
        self.x = self._flat.read()
        self.losses = [math.nan] * config.workers
        self.computed = 0.0
        self._pace = pace
        self._start: float | None = None  # of the first step in this process

    def feed(self, worker: int) -> Feed:
        """Return the data of a worker."""
        if worker not in self._feeds:
            self._feeds[worker] = Feed(self._config, self._workload, worker, CPU)
        return self._feeds[worker]

    def loss(self, model: nn.Module, worker: int, step: int) -> Tensor:
        """Return the loss of a worker's batch of its 0-based step."""
        inputs, targets = self.feed(worker).batch(step + 1)
        model.train()
        loss = measure_loss(model, self._workload, model(inputs), targets)
        self.losses[worker] = float(loss.detach())
        return loss

    def __call__(self, x: Tensor, worker: int, number: int, results: int, memory: dict[str, Any]) -> Tensor:
        self._flat.write(x)
        start = self._flat.read()  # x as the model's dtype has it
        return start - self.end(x, worker, number, results, memory)

    def end(self, x: Tensor, worker: int, number: int, results: int, memory: dict[str, Any]) -> Tensor:
        self._flat.write(x)
        self._optimizer.forget()
        if memory:
            self._optimizer.load_state_dict(memory["optimizer"])
        first, training, losses = results * self.steps // self._config.workers, self._config.training, 0.0
        for step in range(self.steps):
            own = number * self.steps + step
            began = time.perf_counter()
            self._start = self._start or began
            seed_torch(mix(self._config.seed, own + 1, worker), CPU)
            self._optimizer.zero_grad()
            self.loss(self.model, worker, own).backward()
            losses += self.losses[worker]
            clip_gradient(self.model, self._config)
            self._optimizer.step(learning_rate(self._config, min(first + step + 1, training.steps)))
            self._wait(began, own)
        memory["optimizer"] = self._optimizer.state_dict()
        self.losses[worker] = losses / self.steps
        return self._flat.read()

    def _wait(self, began: float, step: int) -> None:
        """Let the rest of a step's time pass."""
        if self._pace:
            spent, batch = time.perf_counter() - began, self._config.training.batch
            time.sleep(self._pace.rest(began - (self._start or began), spent, step, batch))
        self.computed += time.perf_counter() - began
