"""Who draws which example where nobody knows beforehand how many steps a worker takes in a round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from swarmstep.checkpoint import fields
from swarmstep.data.stream import Stream, earliest_first
from swarmstep.errors import CheckpointError, UsageError


class TimedLedger:
    """Deals the examples to workers that take any number of steps in a round, and that may be lost.

    What is left of a stream of passes, as of an `ElasticSampler`, lies in blocks of B examples. A round has C
    columns, the first of them for the workers that begin it: column c has the blocks c, c + C, c + 2 C ... Once
    the round counts, all know how many steps each of its members has taken: so many blocks of each column are
    drawn, and all others, all those of lost workers among them, go back and come first in the next round. So in
    each pass every example is drawn once by steps that count. As many columns again, 2 at least, are kept for
    those who come in the middle of a round; where they do not suffice, the steps of a worker without one do not
    count. The ledgers of all workers are equal, as they hear of the same rounds and changes.

    Args:
        examples: how many there are, at least 1.
        batch: the number B of examples a step and worker, at least 1.
        seed: of the passes' orders.
        workers: how many begin, at least 1.

    Raises:
        UsageError: a number is out of range.
    """

    step = 0  # of the last deal, as of an `ElasticSampler`: what is drawn does not depend on the run's steps

    def __init__(self, examples: int, batch: int, seed: int, workers: int) -> None:
        if min(examples, batch, workers) < 1:
            found = f"{examples}, {batch} and {workers}"
            raise UsageError(f"examples, batch and workers must be at least 1, found {found}")
        self._examples, self._batch, self._seed = examples, batch, seed
        self._count, self._taken, self._columns = 0, 0, list[int]()  # C; how many have been given; of each rank
        self._open(workers)
        self._returned = torch.empty(0, 2, dtype=torch.int64)  # (pass, example): drawn before what follows
        self._place = 0  # where the passes, laid end to end, go on
        self._passes = Stream(examples, seed, "ledger")

    def _open(self, workers: int) -> None:
        """Begin a round of so many workers."""
        self._count, self._taken = workers + max(2, workers), workers
        self._columns = [*range(workers)]

    def counts(self, rank: int) -> bool:
        """Return whether what a worker draws now counts."""
        return self._columns[rank] >= 0

    @property
    def workers(self) -> int:
        """How many workers draw now."""
        return len(self._columns)

    def draw(self, rank: int, step: int, places: tuple[int, int] | None) -> Tensor:
        """Return the examples of a worker's step, int64 [B].

        Args:
            rank: of the worker.
            step: of the run; not used.
            places: the first place and the end of a batch in all that the worker draws in the round.
        """
        assert places
        column = self._columns[rank] if self._columns[rank] >= 0 else rank % self._count
        block = places[0] // self._batch * self._count + column
        return self._stream(block * self._batch, (block + 1) * self._batch)[:, 1]

    def deal(
        self,
        step: int,
        committed: int,
        sources: Sequence[int | None],
        shares: Sequence[int] = (),
        length: int = 1,
    ) -> None:
        """Go on after a round, or with other members.

        Args:
            step: that the members are at.
            committed: the step of the last round that counts; `step` if none is under way.
            sources: for each rank of the group its rank in the one before, None for a newcomer.
            shares: after a round, how many steps each rank has taken in it.
            length: not used.
        """
        if shares:
            self._count_round(shares)
        if step == committed:
            self._open(len(sources))
            return
        before, self._columns = self._columns, []
        for source in sources:
            new = self._taken if self._taken < self._count else -1
            self._taken += source is None and new >= 0
            self._columns.append(new if source is None else before[source])

    def _count_round(self, steps: Sequence[int]) -> None:
        """Note how many steps each rank has taken in a round that counts."""
        columns = dict(zip(self._columns, steps, strict=True))
        columns.pop(-1, None)
        longest = max(columns.values(), default=0)
        end = longest * self._count * self._batch
        blocks = self._stream(0, end).view(longest, self._count, self._batch, 2)
        taken = torch.tensor([columns.get(column, 0) for column in range(self._count)])
        left = torch.arange(longest)[:, None] >= taken
        self._place += max(0, end - len(self._returned))
        self._returned = earliest_first(torch.cat([blocks[left].view(-1, 2), self._returned[end:]]))

    def _stream(self, start: int, stop: int) -> Tensor:
        """Return (pass, example) of the places from `start` up to `stop`, int64 [stop - start, 2]."""
        return self._passes.after(self._returned, self._place, start, stop)

    def state_dict(self) -> dict[str, Any]:
        """Return numbers and tensors: what a rank needs to draw as all others do."""
        return {
            "examples": self._examples,
            "batch": self._batch,
            "seed": self._seed,
            "count": self._count,
            "taken": self._taken,
            "columns": [*self._columns],
            "place": self._place,
            "returned": self._returned.clone(),
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from a `state_dict` of the same examples, batch and seed; the workers are those saved.

        Raises:
            CheckpointError: names the field that does not fit; nothing was loaded then.
        """
        for name, mine in {"examples": self._examples, "batch": self._batch, "seed": self._seed}.items():
            fields.same(f"ledger.{name}", mine, fields.field(saved, name))
        names = ("count", "taken", "columns", "place", "returned")
        count, taken, columns, place, returned = (fields.field(saved, name) for name in names)
        if any(type(number) is not int or number < 0 for number in (count, taken, place)) or taken > count:
            raise CheckpointError(f"ledger: expected counts, found count {count}, taken {taken}, place {place}")
        if not columns or any(type(column) is not int or not -1 <= column < count for column in columns):
            raise CheckpointError(f"ledger.columns: expected numbers below {count}, found {str(columns)[:40]}")
        if not isinstance(returned, Tensor) or returned.dtype != torch.int64 or returned.shape[1:] != (2,):
            raise CheckpointError("ledger.returned: expected int64 of shape [n, 2]")
        if len(returned) and not (returned.min() >= 0 and returned[:, 1].max() < self._examples):
            raise CheckpointError("ledger.returned: a number is out of range; the checkpoint is damaged")
        self._count, self._taken, self._columns, self._place = count, taken, [*columns], place
        self._returned = returned.clone()
