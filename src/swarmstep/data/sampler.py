"""The order in which a worker sees its examples: a pure function of (seed, rank, step)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from swarmstep.data.sharding import Shard
from swarmstep.data.stream import Stream
from swarmstep.errors import UsageError
from swarmstep.seeding import generator


class Batch(NamedTuple):
    """B examples: `indices` int64 [B] into what was sharded, `targets` [B] as the shard has them."""

    indices: Tensor
    targets: Tensor


class Sampler:
    """Draws a worker's batches without replacement; nothing to save, any step can be asked for at any time.

    The stream is one epoch after another, each a new permutation of the shard; batches are cut from it one
    after the other and may cross from one epoch to the next, so a batch larger than the shard repeats
    examples. Of a shard of several chunks (seldp) an epoch goes through the chunks in the shard's order and
    permutes within each.

    `batch` is the number B of examples a step, at least 1. Raises UsageError for a smaller one, an empty
    shard, or a step below 1.
    """

    def __init__(self, shard: Shard, batch: int, seed: int, rank: int) -> None:
        if batch < 1 or not len(shard):
            raise UsageError(f"batch and shard must hold at least 1 example, found {batch} and {len(shard)}")
        self._shard, self._batch, self._seed, self._rank = shard, batch, seed, rank
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)

    def batch(self, step: int) -> Batch:
        """Return the batch of local step `step` (1-based)."""
        start = self._start(step)
        stop = start + self._batch
        parts: list[Tensor] = []
        while start < stop:
            epoch, offset = divmod(start, len(self._shard))
            part = self._permutation(epoch)[offset : offset + stop - start]
            parts.append(part)
            start += len(part)
        places = torch.cat(parts)
        return Batch(self._shard.indices[places], self._shard.targets[places])

    def epoch(self, step: int) -> int:
        """Return the epoch (0-based) in which the batch of `step` (1-based) begins."""
        return self._start(step) // len(self._shard)

    def _start(self, step: int) -> int:
        if step < 1:
            raise UsageError(f"steps count from 1, found {step}")
        return (step - 1) * self._batch

    def _permutation(self, epoch: int) -> Tensor:
        """Return the places in the shard in this epoch's order, int64 [n]; the last one is kept."""
        if epoch != self._epoch:
            source = generator(self._seed, "sampler", self._rank, epoch)
            parts: list[Tensor] = []
            first = 0
            for size in self._shard.chunks:
                parts.append(first + torch.randperm(size, generator=source))
                first += size
            self._epoch, self._order = epoch, torch.cat(parts)
        return self._order


class BalancedSampler:
    """Draws batches with equally many examples of every class, from one shard; nothing to save.

    The places of a worker's batches, one after another, belong to the classes in turn, and each class has a stream
    of its own: its examples in a new random order, again and again. So a batch of B has B / C of each of C
    classes, rounded up or down in turn, and a rare example comes as much more often.

    Args:
        shard: of this worker, with an example of every class.
        batch: B, at least 1.
        seed, rank: of the order.
        classes: C.

    Raises:
        UsageError: the shard has no example of a class.
    """

    def __init__(self, shard: Shard, batch: int, seed: int, rank: int, classes: int) -> None:
        self._shard, self._batch = shard, batch
        self._places = [(shard.targets == label).nonzero().flatten() for label in range(classes)]
        for label, places in enumerate(self._places):
            if not len(places):
                raise UsageError(
                    f"sampling 'balanced': of the {len(shard)} examples of rank {rank} none is of class {label}, "
                    f"and there are {classes} classes; take fewer workers, shards in which each worker has all "
                    f"classes (--shards classes:{classes} deals each out evenly), or --sampling natural"
                )
        self._streams = [
            Stream(len(places), seed, f"class {label} of rank {rank}") for label, places in enumerate(self._places)
        ]

    def batch(self, step: int) -> Batch:
        """Return the batch of local step `step` (1-based), class by class."""
        start, classes = (step - 1) * self._batch, len(self._places)
        ends = start, start + self._batch
        parts: list[Tensor] = []
        for label, (places, stream) in enumerate(zip(self._places, self._streams, strict=True)):
            first, last = (
                -((label - end) // classes) for end in ends
            )  # places before `end` that are this class's
            if first < last:
                parts.append(places[stream.draw(first, last)])
        chosen = torch.cat(parts)
        return Batch(self._shard.indices[chosen], self._shard.targets[chosen])
