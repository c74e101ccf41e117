"""Rounds by time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

from swarmstep.errors import UsageError
from swarmstep.signal import Layout, Signal
from swarmstep.when.base import NoState, When


@final
@dataclass(frozen=True)
class EveryTime(When[NoState]):
    """A round when a worker has computed for `seconds` since the last one, outside of the Synchronizer.

    Together, that is a vote: the workers take the same steps, the roll is called at each of them, and the one that
    computes longest asks first. Otherwise each opens the round after as many of its own steps as fit into the
    time, so that slow and fast ones arrive together; give `Synchronizer.step` the examples as its weight. In an
    elastic group who is early takes further steps until all have come, or one is lost; `Synchronizer.steps` then
    counts rounds, and the data of a step are the loop's own affair.

    Where rounds start depends on measured time, by the group's clock: runs are not reproducible. In one process it
    is each worker's own processor time.

    Args:
        seconds: between rounds, above 0.
        together: whether all take the same steps.

    Raises:
        UsageError: `seconds` is out of its range.
    """

    seconds: float
    together: bool = True

    def __post_init__(self) -> None:
        if not 0.0 < self.seconds < math.inf:
            raise UsageError(f"EveryTime: expected finite seconds above 0, found {self.seconds}")

    @property
    def voting(self) -> bool:
        return self.together

    @property
    def per_rank(self) -> bool:
        return not self.together

    @property
    def timed(self) -> bool:
        return not self.together

    def init(self, layout: Layout, size: int) -> NoState:
        return NoState()

    def due(self, state: NoState, signal: Signal) -> bool:
        return signal.seconds >= self.seconds
