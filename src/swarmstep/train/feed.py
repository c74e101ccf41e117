"""What one worker is fed: its batches, the probe that all share, and what is held out for validation."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from swarmstep.data.elastic_sampler import ElasticSampler
from swarmstep.data.sampler import BalancedSampler, Batch, Sampler
from swarmstep.data.sharding import Shard, hold_out, shard
from swarmstep.data.stream import Stream
from swarmstep.data.timed_ledger import TimedLedger
from swarmstep.errors import UsageError
from swarmstep.seeding import generator
from swarmstep.signal import MembershipChange
from swarmstep.strategies.parts.trust import GROUPS
from swarmstep.train.config import Config
from swarmstep.train.local_step import measure_loss
from swarmstep.workloads import Workload

# Examples of one probe: four times the batch, within these bounds. A forward pass of two is taken to cost as much
# as a step with one, so that a probe costs two local steps, and more only where the batch is below 8.
PROBE = (32, 128)


class Feed:
    """The data of one worker of a run, on its device.

    Args:
        config: resolved.
        workload: its data.
        rank: of the worker.
        device: where batches go.
        members: of the first group of an elastic run, among whom a ledger deals (0: each worker has its shard).
    """

    def __init__(
        self, config: Config, workload: Workload, rank: int, device: torch.device, members: int = 0
    ) -> None:
        self._workload, self._seed, self._rank, self._device = workload, config.seed, rank, device
        held = hold_out(len(workload.train), config.seed)
        self._train, self._targets = held.train, workload.train.targets[held.train]
        self._batch = config.training.batch
        self._kind = TimedLedger if config.balance == "time" else ElasticSampler
        self.ledger: ElasticSampler | TimedLedger | None = None
        self._before: tuple[
            ElasticSampler | TimedLedger, int
        ]  # what was drawn from before the last deal, as which rank
        if config.balance in ("batch", "steps") and not members:
            self._stream = Stream(len(self._train), config.seed)
        elif members or config.shards == "dealt":
            self.ledger = self._ledger(members or config.workers)
        else:
            self._sampler = self._samplers(config)[rank]
        self._probed = workload.train.take(held.probe)
        self.validation = workload.train.take(held.validation)
        low, high = PROBE
        self._probes = min(max(low, 4 * self._batch), high, len(held.probe))
        self.probe_cost = self._probes / (2 * self._batch)  # in local steps

    def _ledger(self, members: int) -> ElasticSampler | TimedLedger:
        return self._kind(len(self._train), self._batch, self._seed, members)

    def _samplers(self, config: Config) -> list[Sampler] | list[BalancedSampler]:
        """Return those of all ranks, so that what is wrong with one is an error on all."""
        shards, batch, seed = self._shards(config), self._batch, config.seed
        if config.sampling == "balanced":
            count = self._workload.classes or 0
            return [BalancedSampler(part, batch, seed, rank, count) for rank, part in enumerate(shards)]
        return [Sampler(part, batch, seed, rank) for rank, part in enumerate(shards)]

    def _shards(self, config: Config) -> list[Shard]:
        classes = self._workload.classes
        return shard(self._targets, config.shards, config.workers, config.seed, classes, self._train)

    def batch(
        self, number: int, places: tuple[int, int] | None = None, step: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the inputs and targets of a step.

        Args:
            number: of this worker's step, from 1.
            places: with --balance, the first place and the end in the common stream, or in what the ledger deals.
            step: of the run, that it belongs to (default: `number`).
        """
        if self.ledger:
            step = number if step is None else step
            ledger, rank = (self.ledger, self._rank) if step > self.ledger.step else self._before
            indices = ledger.draw(rank, step, places)
            batch = Batch(indices, self._targets[indices])
        elif places:
            indices = self._stream.draw(*places)
            batch = Batch(indices, self._targets[indices])
        else:
            batch = self._sampler.batch(number)
        inputs = self._workload.prepare(self._workload.train.inputs[self._train[batch.indices]])
        if self._workload.augment:
            inputs = self._workload.augment(inputs, generator(self._seed, number, self._rank, "augment"))
        return inputs.to(self._device), batch.targets.to(self._device)

    @property
    def counts(self) -> bool:
        """Whether what this worker draws now is in the books."""
        return not isinstance(self.ledger, TimedLedger) or self.ledger.counts(self._rank)

    def deal(self, change: MembershipChange, shares: tuple[list[int], int] | None = None) -> None:
        """Go on with other members; see `ElasticSampler.deal`.

        A worker behind `change.step` draws as before until it gets there.

        Args:
            change: of the membership.
            shares: of each member in a unit, and its steps (None: all draw as much).
        """
        self._deal(change.step, change.committed, change.sources, shares)
        self._rank = change.rank

    def share_out(self, step: int, shares: tuple[list[int], int] | None) -> None:
        """Go on with other shares of the same members, after a round at `step`; None: nothing changes.

        With --balance time these are the steps that each has taken in that round.
        """
        if self.ledger and shares:
            self._deal(step, step, range(self.ledger.workers), shares)

    def _deal(
        self, step: int, committed: int, sources: Sequence[int | None], shares: tuple[list[int], int] | None
    ) -> None:
        assert self.ledger
        self._before = copy.copy(self.ledger), self._rank
        of_each, length = shares or ([], 1)
        self.ledger.deal(step, committed, sources, of_each, length)

    def state_dict(self) -> dict[str, Any]:
        """Return what there is to save: nothing where each worker has its shard."""
        return self.ledger.state_dict() if self.ledger else {}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`; CheckpointError where it does not fit."""
        self.ledger = self._ledger(1) if saved else None
        if self.ledger:
            self.ledger.load_state_dict(saved)

    def change(self, before: Config, change: MembershipChange, shares: tuple[list[int], int] | None) -> None:
        """Go on from a checkpoint of a run that had `before.workers`, each with its shard, or a ledger by now.

        `shares` are as for `deal`.

        Raises:
            UsageError: the shards are none that others can take over.
        """
        if self.ledger is None:
            if before.shards != "iid" or before.sampling == "balanced":
                option = "--sampling balanced" if before.shards == "iid" else f"--shards {before.shards}"
                raise UsageError(
                    f"--workers: expected {before.workers}, as the run has; with {option} nobody can take over a "
                    "worker's data"
                )
            counts = change.step, len(change.sources), len(self._train), change.committed
            self.ledger = ElasticSampler.after(self._shards(before), self._batch, self._seed, *counts)
            self._rank = change.rank
        else:
            self.deal(change, shares)

    def probe(self, module: nn.Module, step: int) -> Tensor:
        """Return the losses [n] of some of the examples held out for it, others at each step.

        All are cut into n stretches, and the i-th example is one of the i-th stretch. The workload's loss is a
        mean: the mean of its group stands for each example, with groups as `Tensor.tensor_split` cuts them.
        """
        n = self._probes
        ends = torch.arange(n + 1) * len(self._probed) // n
        drawn = torch.rand(n, generator=generator(self._seed, step, "probe"))
        part = self._probed.take(ends[:-1] + (drawn * ends.diff()).long())
        inputs, targets = self._workload.prepare(part.inputs).to(self._device), part.targets.to(self._device)
        groups = zip(module(inputs).tensor_split(GROUPS), targets.tensor_split(GROUPS), strict=True)
        return torch.cat(
            [
                measure_loss(module, self._workload, outputs, of).expand(len(of))
                for outputs, of in groups
                if len(of)
            ]
        )
