"""Who draws which example while workers come and go: nothing is dropped, nothing is drawn twice in a pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from swarmstep.checkpoint import fields
from swarmstep.data.sampler import Sampler
from swarmstep.data.sharding import Shard
from swarmstep.data.stream import Stream, earliest_first, of_pass
from swarmstep.errors import CheckpointError, UsageError


class ElasticSampler:
    """Deals the examples to the workers out of one common stream, which every rank can compute.

    A *pass* goes through all examples once, in a random order of its own; the stream is one pass after another.
    Of what is left of it at a deal, rank r of m draws the places r, r + m, r + 2m ...: as all workers take the
    same steps, what they have drawn together is always a beginning of it. What lost workers drew for nothing
    goes back and comes first in the next deal. So in a pass each example is drawn once by steps that count, and
    again only for a step that was rolled back. The ledgers of all ranks are equal, as they hear of the same
    deals.

    A deal may give the ranks unequal shares of each *unit* of one or more steps: rank r then draws a stretch of
    `shares[r]` places of it.

    Args:
        examples: how many there are, at least 1.
        batch: the number B of examples a step and worker, at least 1.
        seed: of the passes' orders.
        workers: how many begin, at least 1, at step 0.

    Raises:
        UsageError: a number is out of range.
    """

    def __init__(self, examples: int, batch: int, seed: int, workers: int) -> None:
        if min(examples, batch, workers) < 1:
            found = f"{examples}, {batch} and {workers}"
            raise UsageError(f"examples, batch and workers must be at least 1, found {found}")
        self._examples, self._batch, self._seed = examples, batch, seed
        self._workers, self._step, self._committed = workers, 0, 0
        self._shares, self._length = list[int](), 1  # of a unit; empty: all draw as much
        self._returned = _rows(2)  # (pass, example): drawn again, before what follows
        self._place = 0  # where the passes, laid end to end, go on
        self._drawn = _rows(4)  # (rank, step, pass, example), of this group up to the deal; may yet be rolled back
        self._passes = Stream(examples, seed, "ledger")

    @property
    def workers(self) -> int:
        """How many workers draw now."""
        return self._workers

    @property
    def step(self) -> int:
        """The step of the last deal."""
        return self._step

    def batch(self, rank: int, step: int) -> Tensor:
        """Return the examples that `rank` draws in a 1-based `step`, int64 [B]; with shares, in the step's unit.

        Raises:
            UsageError: there is no such rank, or the step is not after the last deal.
        """
        return self._draws(rank, step)[:, 1]

    def draw(self, rank: int, step: int, places: tuple[int, int] | None) -> Tensor:
        """Return the examples of a step, int64: those at these places of `batch`, or all of it."""
        indices = self.batch(rank, step)
        return indices[slice(*places)] if places else indices

    def pass_of(self, rank: int, step: int) -> int:
        """Return the pass (0-based) of the first example of that batch; raises as `batch` does."""
        return int(self._draws(rank, step)[0, 0])

    def _draws(self, rank: int, step: int) -> Tensor:
        if not 0 <= rank < self._workers or step <= self._step:
            raise UsageError(
                f"expected a rank of 0..{self._workers - 1} and a step after {self._step}, that of the last deal, "
                f"found rank {rank} and step {step}"
            )
        if not self._shares:
            return self._stream(self._used(step - 1), self._used(step))[rank :: self._workers]
        unit = (step - 1 - self._step) // self._length
        first = unit * sum(self._shares) + sum(self._shares[:rank])
        return self._stream(first, first + self._shares[rank])

    def _used(self, step: int) -> int:
        """Return how much of the stream the workers have drawn when they have taken `step`."""
        return (step - self._step) * self._workers * self._batch

    def _stream(self, start: int, stop: int) -> Tensor:
        """Return (pass, example) of the places from `start` up to `stop`, int64 [stop - start, 2]."""
        return self._passes.after(self._returned, self._place, start, stop)

    def deal(
        self,
        step: int,
        committed: int,
        sources: Sequence[int | None],
        shares: Sequence[int] = (),
        length: int = 1,
    ) -> None:
        """Deal anew: the membership, or the shares, changed when all survivors had taken `step` steps.

        What workers drew that are not in `sources` counts up to step `committed`; what they drew later goes back.

        Args:
            step: not before the last deal.
            committed: the step of the last committed round, at most `step`.
            sources: for each rank of the new group its rank in the old one, or None for a newcomer.
            shares: from now on, of each rank of a unit: whole numbers of sum length * workers * B. Empty: each
                draws B in each step. With shares the next deal is at the end of a unit.
            length: of a unit, in steps.

        Raises:
            UsageError: these do not go together, or with the last deal; nothing was changed.
        """
        self._check_deal(step, committed, sources)
        self._check_shares(step, len(sources), shares, length)
        used, since = self._used(step), self._used(max(self._step, committed))
        places = torch.arange(since, used)
        who = torch.stack(self._drawer(places), 1)
        earlier = self._drawn[self._drawn[:, 1] > committed]
        drawn = torch.cat([earlier, torch.cat([who, self._stream(since, used)], 1)])
        ranks = torch.full((self._workers,), -1)
        for rank, source in enumerate(sources):
            if source is not None:
                ranks[source] = rank
        drawn[:, 0] = ranks[drawn[:, 0]]
        lost = drawn[:, 0] < 0
        self._place += max(0, used - len(self._returned))
        self._returned = earliest_first(torch.cat([self._returned[used:], drawn[lost, 2:]]))
        self._drawn = drawn[~lost]
        self._workers, self._step, self._committed = len(sources), step, committed
        self._shares, self._length = [*shares], length

    def _drawer(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """Return who draws these places, counted from the last deal, and in which step, a unit's last one."""
        if not self._shares:
            return places % self._workers, self._step + 1 + places // (self._workers * self._batch)
        ends, size = torch.tensor(self._shares).cumsum(0), sum(self._shares)
        ranks = torch.searchsorted(ends, places % size, right=True)
        return ranks, self._step + (1 + places // size) * self._length

    def _check_shares(self, step: int, workers: int, shares: Sequence[int], length: int) -> None:
        total = length * workers * self._batch
        if length < 1 or (shares and (len(shares) != workers or min(shares) < 0 or sum(shares) != total)):
            raise UsageError(f"deal: expected {workers} shares of sum {total}, or none; found {[*shares]}")
        if self._shares and (step - self._step) % self._length:
            raise UsageError(
                f"deal: expected the end of a unit of {self._length} steps after step {self._step}, found {step}"
            )

    def _check_deal(self, step: int, committed: int, sources: Sequence[int | None]) -> None:
        if step < self._step or not self._committed <= committed <= step:
            raise UsageError(
                f"deal: expected a step of at least {self._step} and a committed one from {self._committed} to "
                f"it, found {step} and {committed}"
            )
        old = [source for source in sources if source is not None]
        if not sources or len({*old}) < len(old) or not {*old} <= {*range(self._workers)}:
            raise UsageError(
                f"deal: expected sources of different ranks of 0..{self._workers - 1}, or None, found {[*sources]}"
            )

    def state_dict(self) -> dict[str, Any]:
        """Return numbers and tensors: what a rank needs to draw as all others do."""
        return {
            "examples": self._examples,
            "batch": self._batch,
            "seed": self._seed,
            "workers": self._workers,
            "step": self._step,
            "committed": self._committed,
            "place": self._place,
            "returned": self._returned.clone(),
            "drawn": self._drawn.clone(),
            "shares": [*self._shares],
            "length": self._length,
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from a `state_dict` of the same examples, batch and seed; the workers are those saved.

        Raises:
            CheckpointError: names the field that does not fit; nothing was loaded then.
        """
        for name, mine in {"examples": self._examples, "batch": self._batch, "seed": self._seed}.items():
            fields.same(f"ledger.{name}", mine, fields.field(saved, name))
        lowest = {"workers": 1, "step": 0, "committed": 0, "place": 0}
        workers, step, committed, place = (_number(saved, name, low) for name, low in lowest.items())
        if committed > step:
            raise CheckpointError(f"ledger.committed: expected at most {step}, the step, found {committed}")
        most = torch.iinfo(torch.int64).max
        limits = [(0, workers - 1), (committed + 1, step), (0, most), (0, self._examples - 1)]
        returned = _table(saved, "returned", limits[2:])
        drawn = _table(saved, "drawn", limits)
        shares, length = saved.get("shares", []), saved.get("length", 1)  # older ledgers have none
        if shares and (len(shares) != workers or sum(shares) != length * workers * self._batch):
            raise CheckpointError(f"ledger.shares: expected those of {workers} workers, found {shares}")
        self._shares, self._length = [*shares], length
        self._workers, self._step, self._committed, self._place = workers, step, committed, place
        self._returned, self._drawn = returned, drawn

    @classmethod
    def after(
        cls,
        shards: Sequence[Shard],
        batch: int,
        seed: int,
        step: int,
        workers: int,
        examples: int,
        committed: int | None = None,
    ) -> ElasticSampler:
        """Return the ledger of a run that had a `Sampler` for each of `shards` up to `step`, now of `workers`.

        The first ranks go on, those that are too many are lost, as in `deal`, and newcomers follow.

        Args:
            shards: iid: each example is in one of them.
            batch: as in the class.
            seed: as in the class, and of the samplers.
            step: the last one taken.
            workers: how many there are from now on.
            examples: as in the class.
            committed: the step of the last committed round (default: `step`).

        Raises:
            UsageError: not every example is in one shard, or a number is out of range.
        """
        held = torch.cat([shard.indices for shard in shards]).sort().values
        if not held.equal(torch.arange(examples)):
            raise UsageError(
                f"shards: expected each of {examples} examples in one of them, as with shards iid; keep the "
                "number of workers"
            )
        committed = step if committed is None else committed
        ledger = cls(examples, batch, seed, len(shards))
        ledger._check_deal(step, committed, [None] * workers)
        last = max(step * batch // len(shard) for shard in shards)  # the latest pass that anybody has begun
        left, drawn = [ledger._returned], [ledger._drawn]
        for rank, shard in enumerate(shards):
            stream = Sampler(shard, len(shard), seed, rank)  # a batch is a pass
            begun, offset = divmod(step * batch, len(shard))
            orders = [of_pass(i, stream.batch(i + 1).indices) for i in range(begun, last + 1)]
            left += [orders[0][offset:], *orders[1:]]
            sampler = Sampler(shard, batch, seed, rank)
            for took in range(committed + 1, step + 1):
                places = torch.arange((took - 1) * batch, took * batch)
                who = torch.tensor([rank, took]).expand(batch, 2)
                what = torch.stack([places // len(shard), sampler.batch(took).indices], 1)
                drawn.append(torch.cat([who, what], 1))
        ledger._step, ledger._committed, ledger._place = step, committed, (last + 1) * examples
        ledger._returned, ledger._drawn = earliest_first(torch.cat(left)), torch.cat(drawn)
        ledger.deal(step, committed, [rank if rank < len(shards) else None for rank in range(workers)])
        return ledger


def _rows(columns: int) -> Tensor:
    return torch.empty(0, columns, dtype=torch.int64)


def _number(saved: Mapping[str, Any], name: str, low: int) -> int:
    found = fields.field(saved, name)
    if type(found) is not int or found < low:
        raise CheckpointError(f"ledger.{name}: expected a whole number of at least {low}, found {str(found)[:40]}")
    return found


def _table(saved: Mapping[str, Any], name: str, limits: Sequence[tuple[int, int]]) -> Tensor:
    """Return a copy of a table of int64, each column within its limits."""
    found = fields.field(saved, name)
    if not isinstance(found, Tensor) or found.dtype != torch.int64 or found.shape[1:] != (len(limits),):
        raise CheckpointError(f"ledger.{name}: expected int64 of shape [n, {len(limits)}]")
    low, high = torch.tensor(limits).unbind(1)
    if ((found < low) | (found > high)).any():
        raise CheckpointError(f"ledger.{name}: a number is out of range; the checkpoint is damaged")
    return found.clone()
