"""The trigger of a warm-up: the rounds of one trigger, then those of another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, final

from swarmstep.signal import Layout, Signal
from swarmstep.when.base import NoState, When


@final
@dataclass(frozen=True)
class WarmupTrigger(When):
    """The rounds of `first` up to step `steps`, one at that step in any case, then the rounds of `then`.

    `then` is asked at every step, so that the length of the warm-up does not shift its schedule and what it
    remembers is complete when its time comes.

    Args:
        first: the trigger during the warm-up, which remembers nothing.
        steps: length of the warm-up, at least 0.
        then: the trigger afterwards.
    """

    first: When[NoState]
    steps: int
    then: When

    @property
    def voting(self) -> bool:
        return self.then.voting

    @property
    def per_rank(self) -> bool:
        return self.then.per_rank

    def init(self, layout: Layout, size: int) -> NamedTuple:
        return self.then.init(layout, size)

    def due(self, state: NamedTuple, signal: Signal) -> bool:
        due = self.then.due(state, signal)
        if signal.step > self.steps:
            return due
        return signal.step == self.steps or self.first.due(NoState(), signal)
