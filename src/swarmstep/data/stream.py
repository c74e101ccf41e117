"""One common stream of examples, from which workers draw stretches of any length."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from swarmstep.errors import UsageError
from swarmstep.seeding import generator


class Stream:
    """All examples in a new random order, again and again; any place can be asked for at any time.

    Workers that draw stretches which follow each other draw each example once in every pass, whatever the lengths.

    Args:
        examples: how many there are, at least 1.
        seed: of the orders.
        name: of what draws from it; streams of different names have different orders.

    Raises:
        UsageError: there are no examples.
    """

    def __init__(self, examples: int, seed: int, name: str = "stream") -> None:
        if examples < 1:
            raise UsageError(f"a stream needs at least 1 example, found {examples}")
        self._examples, self._seed, self._name = examples, seed, name
        self._pass, self._order = -1, torch.empty(0, dtype=torch.int64)  # looked at last

    def draw(self, start: int, stop: int) -> Tensor:
        """Return the examples at the places from `start` up to `stop`, int64 [stop - start].

        Raises:
            UsageError: unless 0 <= start < stop.
        """
        if not 0 <= start < stop:
            raise UsageError(f"expected places 0 <= start < stop of the stream, found {start} and {stop}")
        return torch.cat([part for _, part in self.by_pass(start, stop)])

    def by_pass(self, start: int, stop: int) -> Iterator[tuple[int, Tensor]]:
        """Yield (pass, examples) of the places from `start` up to `stop`, one pass after the other."""
        while start < stop:
            number, offset = divmod(start, self._examples)
            part = self._permutation(number)[offset : offset + stop - start]
            yield number, part
            start += len(part)

    def after(self, first: Tensor, place: int, start: int, stop: int) -> Tensor:
        """Return rows of (pass, example): those of `first`, then the passes from `place` on.

        Args:
            first: what comes before, int64 [F, 2].
            place: in the passes, laid end to end, where they go on.
            start: of the rows, the first one that is returned.
            stop: and the one after the last.
        """
        parts = [first[start:stop]]
        start, stop = (max(number - len(first), 0) + place for number in (start, stop))
        return torch.cat([*parts, *(of_pass(number, examples) for number, examples in self.by_pass(start, stop))])

    def _permutation(self, number: int) -> Tensor:
        if number != self._pass:
            source = generator(self._seed, self._name, number)
            self._pass, self._order = number, torch.randperm(self._examples, generator=source)
        return self._order


def of_pass(number: int, examples: Tensor) -> Tensor:
    """Return (pass, example) of `examples`, int64 [n, 2]."""
    return torch.stack([torch.full_like(examples, number), examples], 1)


def earliest_first(rows: Tensor) -> Tensor:
    """Return rows of (pass, example), the earliest pass first."""
    return rows[rows[:, 0].argsort(stable=True)]
