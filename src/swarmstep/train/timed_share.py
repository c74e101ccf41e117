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
    W is how many workers the run began with, and who joins in the middle of a round counts in it with what it was
    given: its own steps count from the next round on.

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
        self._guests = set[str]()  # who has joined in the middle of the present round
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
        """Of the next step: its examples, 0 where it does not count."""
        comm = self._sync.comm
        return 0.0 if comm.names and comm.names[comm.rank] in self._guests else float(self._batch)

    def worked(self, seconds: float) -> None:
        """Count a step, after `Synchronizer.step`."""
        self._own += 1

    def landed(self, report: Round) -> None:
        """Count what all have done since the round before."""
        before, self._own = self.taken, 0
        names = report.members or ("",) * len(report.weights)
        counted = [0.0 if n in self._guests else w for n, w in zip(names, report.weights, strict=True)]
        self._examples += sum(counted)
        self._done = [round(examples / self._batch) for examples in counted]
        self._guests.clear()
        self.stride = max(1, self.taken - before)

    def regroup(self, change: MembershipChange) -> None:
        """Note who has joined in the middle of a round."""
        came = {name for name, source in zip(change.names, change.sources, strict=True) if source is None}
        self._guests = {*self._guests, *came} if change.step > change.committed else set()
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
        return {"examples": self._examples, "guests": sorted(self._guests)}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self._examples, self._guests = saved["examples"], {*saved.get("guests", ())}
