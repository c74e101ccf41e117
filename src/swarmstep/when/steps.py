"""Triggers that follow from the count of steps alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, final

import torch

from swarmstep.errors import UsageError
from swarmstep.ownership import Own
from swarmstep.signal import Layout, Signal
from swarmstep.when.base import NoState, When


@final
@dataclass(frozen=True)
class Every(When[NoState]):
    """A round after every `n`-th step: steps n, 2n, 3n, ...

    With a tuple, the workers take different numbers of steps between rounds: rank r opens one after every
    ``n[r]``-th of its own steps, so that slow and fast workers arrive together. Such a group cannot be elastic.

    Args:
        n: steps between rounds, at least 1; or a tuple of them, one for each rank.

    Raises:
        UsageError: `n` is out of its range, or is a tuple of another length than the group has workers.
    """

    n: int | tuple[int, ...]

    def __post_init__(self) -> None:
        if not self._numbers or min(self._numbers) < 1:
            raise UsageError(f"Every: expected n >= 1, found {self.n}")

    @property
    def _numbers(self) -> tuple[int, ...]:
        return self.n if isinstance(self.n, tuple) else (self.n,)

    @property
    def period(self) -> int:
        return 0 if isinstance(self.n, tuple) else self.n

    @property
    def per_rank(self) -> bool:
        return isinstance(self.n, tuple)

    def init(self, layout: Layout, size: int) -> NoState:
        if isinstance(self.n, tuple) and len(self.n) != size:
            raise UsageError(
                f"Every: expected a number of steps for each of the {size} workers, found {len(self.n)}: {self.n}"
            )
        return NoState()

    def due(self, state: NoState, signal: Signal) -> bool:
        return signal.step % (self.n[signal.rank] if isinstance(self.n, tuple) else self.n) == 0


class BalancedState(NamedTuple):
    """This worker's share of the present round, and how far it is."""

    own: Own  # int64 []: this worker's steps in a round
    taken: Own  # int64 []: those of them that it has taken
    length: Own  # int64 []: steps of the run in a round


@final
@dataclass(frozen=True)
class Balanced(When[BalancedState]):
    """A round after as many steps of each worker as a `Balance` gives it, `n` on average: all arrive together.

    Steps are counted as those of an equal worker: with k of its own in a round, the count has gone on by
    floor(j n / k) when a worker has taken j of them. Without a `Balance` it is ``Every(n)``.

    Args:
        n: mean number of steps between rounds, at least 1.

    Raises:
        UsageError: `n` is out of its range.
    """

    n: int

    def __post_init__(self) -> None:
        if self.n < 1:
            raise UsageError(f"Balanced: expected n >= 1, found {self.n}")

    def init(self, layout: Layout, size: int) -> BalancedState:
        return BalancedState(torch.tensor(self.n), torch.tensor(0), torch.tensor(self.n))

    def count(self, state: BalancedState) -> int:
        own, taken, length = map(int, state)
        return (taken + 1) * length // own - taken * length // own

    def due(self, state: BalancedState, signal: Signal) -> bool:
        state.taken.add_(1)
        due = bool(state.taken >= state.own)
        if due:
            state.taken.zero_()
        return due

    @staticmethod
    def plan(state: BalancedState, own: int, length: int) -> None:
        """Let the round that begins here have so many steps of this worker's own, and of the run."""
        for tensor, value in zip(state, (own, 0, length), strict=True):
            tensor.fill_(value)


@final
@dataclass(frozen=True)
class Never(When[NoState]):
    """No rounds at all: independent training."""

    def init(self, layout: Layout, size: int) -> NoState:
        return NoState()

    def due(self, state: NoState, signal: Signal) -> bool:
        return False
