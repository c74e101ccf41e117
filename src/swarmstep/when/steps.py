"""Triggers that follow from the count of steps alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from swarmstep.errors import UsageError
from swarmstep.signal import Layout, Signal
from swarmstep.when.base import NoState, When


@final
@dataclass(frozen=True)
class Every(When[NoState]):
    """A round after every `n`-th step: steps n, 2n, 3n, ...

    Args:
        n: steps between rounds, at least 1.

    Raises:
        UsageError: `n` is out of its range.
    """

    n: int

    def __post_init__(self) -> None:
        if self.n < 1:
            raise UsageError(f"Every: expected n >= 1, found {self.n}")

    @property
    def period(self) -> int:
        return self.n

    def init(self, layout: Layout, size: int) -> NoState:
        return NoState()

    def due(self, state: NoState, signal: Signal) -> bool:
        return signal.step % self.n == 0


@final
@dataclass(frozen=True)
class Never(When[NoState]):
    """No rounds at all: independent training."""

    def init(self, layout: Layout, size: int) -> NoState:
        return NoState()

    def due(self, state: NoState, signal: Signal) -> bool:
        return False
