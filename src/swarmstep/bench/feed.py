"""What one worker is fed: its batches, the probe that all share, and what is held out for validation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from swarmstep.bench.config import Config
from swarmstep.bench.inner import measure_loss
from swarmstep.bench.sampler import Sampler
from swarmstep.bench.sharding import hold_out, shard
from swarmstep.bench.workloads import Workload
from swarmstep.seeding import generator

PROBE = 128  # examples of one probe; a forward pass of two is taken to cost as much as a step with one


class Feed:
    """The data of one worker of a run, on its device.

    Args:
        config: resolved.
        workload: its data.
        rank: of the worker.
        device: where batches go.
    """

    def __init__(self, config: Config, workload: Workload, rank: int, device: torch.device) -> None:
        self._workload, self._seed, self._rank, self._device = workload, config.seed, rank, device
        held = hold_out(len(workload.train), config.seed)
        targets = workload.train.targets[held.train]
        shards = shard(targets, config.shards, config.workers, config.seed, workload.classes)
        self._sampler = Sampler(shards[rank], config.defaults().batch, config.seed, rank)
        self._train = held.train
        self._probed = workload.train.take(held.probe)
        self.validation = workload.train.take(held.validation)
        self.probe_cost = min(PROBE, len(held.probe)) / (2 * config.defaults().batch)  # in local steps

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Return the inputs and targets of a 1-based step."""
        batch = self._sampler.batch(step)
        inputs = self._workload.prepare(self._workload.train.inputs[self._train[batch.indices]])
        if self._workload.augment:
            inputs = self._workload.augment(inputs, generator(self._seed, step, self._rank, "augment"))
        return inputs.to(self._device), batch.targets.to(self._device)

    def probe(self, module: nn.Module, step: int) -> Tensor:
        """Return the loss on as many as PROBE of the examples held out for it, others at each step."""
        order = torch.randperm(len(self._probed), generator=generator(self._seed, step, "probe"))
        part = self._probed.take(order[:PROBE])
        inputs, targets = self._workload.prepare(part.inputs).to(self._device), part.targets.to(self._device)
        return measure_loss(self._workload, module(inputs), targets)
