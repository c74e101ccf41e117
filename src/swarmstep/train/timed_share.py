"""What one worker does with --balance time: as many of its own steps as fit into the time between two rounds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from swarmstep.runtime.synchronizer import Synchronizer
from swarmstep.signal import MembershipChange, Round
from swarmstep.train.config import Config


class TimedShare:
    """Where a worker is in a run whose rounds are set by the clock, with the interface of `WorkShare`.

    The run's steps are those of an equal worker: with each round their count goes on by all workers' examples,
    divided by W batches. In a fixed group each worker draws from its own shard. In an elastic one a ledger deals,
    and W is how many workers the run began with.

    Args:
        config: resolved.
        sync: of this worker.
    """

    balanced = False
    shares: tuple[int, ...] = ()
    unmeasured = False
    uneven = True

    def __init__(self, config: Config, sync: Synchronizer) -> None:
        self._sync, self._batch, self._steps = sync, config.training.batch, config.training.steps
        self._all = config.workers * self._batch
        self._examples, self._own = 0.0, 0  # of all before the present round; this worker's own steps in it
        self._done: list[int] | None = None  # the steps of each in the round that has just landed
        self.stride = 1
        sync.attach("share", self)

    @property
    def taken(self) -> int:
        """The run's steps that all workers have taken."""
        return min(int(self._examples / self._all), self._steps)

    @property
    def committed(self) -> int:
        """The run's steps at the last round that counts."""
        return self.taken

    @property
    def done(self) -> tuple[int, ...]:
        """How many steps each member has taken in the round that has just landed."""
        return tuple(self._done or ())

    @property
    def dealt(self) -> tuple[list[int], int] | None:
        """As `TimedLedger.deal` wants it after a round."""
        return (self._done, 1) if self._done is not None else None

    @property
    def places(self) -> tuple[int, int] | None:
        """Where the next step's examples lie in what this worker draws in the round; None: in its shard."""
        return (self._own * self._batch, (self._own + 1) * self._batch) if self._sync.comm.elastic else None

    @property
    def together(self) -> bool:
        """Whether all workers are at the same point of the run."""
        return self._own == 0

    @property
    def step(self) -> int:
        """The run's step (1-based) that the worker's next step belongs to, for the learning rate."""
        return min(self.taken + 1 + self._own, self._steps)

    @property
    def weight(self) -> float:
        """Of the next step: its examples."""
        return float(self._batch)

    def worked(self, seconds: float) -> None:
        """Count a step, after `Synchronizer.step`."""
        self._own += 1

    def landed(self, report: Round) -> None:
        """Count what all have done since the round before."""
        before, self._own = self.taken, 0
        self._examples += sum(report.weights)
        self._done = [round(examples / self._batch) for examples in report.weights]
        self.stride = max(1, self.taken - before)

    def regroup(self, change: MembershipChange) -> None:
        """Go on in a group that has changed, in the middle of a round or between two."""
        self._done = None
        if change.newcomer:
            self._own = 0

    def measurement(self) -> float:
        """Nothing is measured."""
        return math.nan

    def update(self, seconds: Sequence[float]) -> None:
        """Nothing is divided."""

    def state_dict(self) -> dict[str, Any]:
        """Return what is counted, the same on all workers."""
        return {"examples": self._examples}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self._examples = saved["examples"]
