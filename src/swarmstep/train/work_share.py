"""What one worker of a run does of the work of all: equal shares, or with --balance as much as fits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from swarmstep.runtime.balance import Balance
from swarmstep.runtime.synchronizer import Synchronizer
from swarmstep.signal import MembershipChange, Round
from swarmstep.train.balance_options import least_batch, max_batches
from swarmstep.train.config import Config
from swarmstep.when import Balanced

FIRST = 3  # steps after which the workers are measured for the first time


class WorkShare:
    """Where one worker is in the work of all, and which part of it comes next.

    The run's steps are those of an equal worker. With `--balance steps` a worker takes more or fewer of its own
    in each round; the last round may be shorter, and so is the first one, until it has been measured who is how
    fast. In an elastic run the workers are measured in each round, and the work is divided anew, too, when the
    membership changes.

    Args:
        config: resolved.
        sync: of this worker.
    """

    done: tuple[int, ...] = ()  # all take the same steps, or those of the shares

    def __init__(self, config: Config, sync: Synchronizer) -> None:
        self._sync, self._batch, self._steps = sync, config.training.batch, config.training.steps
        self._by_steps = config.balance == "steps"
        self._balance: Balance | None = None
        if self._by_steps:
            self._balance = Balance(sync)
        elif config.balance == "batch":
            least, most = least_batch(config), max_batches(config)
            self._balance = Balance(sync, self._batch, least=least, most=most)
        self._spent, self._parts = 0.0, 0  # since the last measurement: seconds computing, in so many steps
        self._measured = False
        # With --balance steps: the run's steps before the present round, this worker's own in it, those of each.
        self._taken, self._own, self._shares = 0, 0, list[int]()
        self._open(sync.steps)

    @property
    def balanced(self) -> bool:
        """Whether the shares change."""
        return self._balance is not None

    @property
    def shares(self) -> tuple[int, ...]:
        """Each worker's examples of a step, or steps of a round; empty where all are equal."""
        return self._balance.shares if self._balance else ()

    @property
    def dealt(self) -> tuple[list[int], int] | None:
        """Each worker's examples of so many steps of the run, as `ElasticSampler.deal` wants them.

        None where all are equal, or nothing is left to do.
        """
        if not self._balance or (self._by_steps and not self._length):
            return None
        if self._by_steps:
            return [steps * self._batch for steps in self._shares], self._length
        return [*self._balance.shares], 1

    @property
    def stride(self) -> int:
        """By how many steps `taken` goes on at once, at most."""
        when = self._sync.strategy.when
        return when.n if self._by_steps and isinstance(when, Balanced) else 1

    @property
    def taken(self) -> int:
        """The run's steps that all workers have taken."""
        return self._taken if self._by_steps else self._sync.steps

    @property
    def committed(self) -> int:
        """The run's steps at the last round that counts."""
        return self._sync.committed

    @property
    def uneven(self) -> bool:
        """Whether workers take different numbers of steps between rounds."""
        return self._by_steps

    @property
    def together(self) -> bool:
        """Whether all workers are at the same point of the run."""
        return self._own == 0

    @property
    def _length(self) -> int:
        """The run's steps of the present round, 0 at the end; with --balance steps."""
        longest = self.stride if self._taken or self._sync.comm.elastic else FIRST
        return max(0, min(self.stride, longest, self._steps - self._taken))

    def _open(self, step: int) -> None:
        """Divide the round that begins after a step of the run; with --balance steps."""
        if not self._by_steps or not self._balance:
            return
        self._taken, self._own = step, 0
        if not self._length:
            return
        shares, comm = self._balance.shares, self._sync.comm
        whole = self._length == self.stride
        self._shares = list(shares) if whole else self._balance.of(self._length * len(shares))
        if len(shares) == comm.size:  # else a newcomer is told of what was before
            self._balance.plan(self._shares[comm.rank], self._length)

    @property
    def step(self) -> int:
        """The run's step (1-based) that the worker's next step belongs to, for the learning rate."""
        return self._sync.steps + 1

    @property
    def places(self) -> tuple[int, int] | None:
        """First place and end of the next step's examples, where not all are equal.

        In the `Stream` of all or, in an elastic run, in what this worker draws in its round; None: all of that.
        """
        if not self._balance:
            return None
        comm, elastic = self._sync.comm, self._sync.comm.elastic
        if self._by_steps:
            before = 0 if elastic else self._taken * comm.size + sum(self._shares[: comm.rank])
            return (before + self._own) * self._batch, (before + self._own + 1) * self._batch
        if elastic:
            return None
        shares = self._balance.shares
        first = self._sync.steps * sum(shares) + sum(shares[: comm.rank])
        return first, first + shares[comm.rank]

    @property
    def weight(self) -> float:
        """Of the next step: its examples, or 1 where all are equal."""
        if not self._balance:
            return 1.0
        return float(self._batch if self._by_steps else self._balance.batch)

    def worked(self, seconds: float) -> None:
        """Count a step, after `Synchronizer.step`.

        Args:
            seconds: spent computing it.
        """
        if not self._balance:
            return
        self._spent, self._parts = self._spent + seconds, self._parts + 1
        if not self._by_steps:
            return
        self._own += 1
        if self._own == self._shares[self._sync.comm.rank]:
            self._open(self._sync.steps)

    def landed(self, report: Round) -> None:
        """In an elastic run, divide the work anew by what a round says each worker has spent."""
        if self._balance and self._sync.comm.elastic:
            self._balance.update(report)
            self._open(report.step)

    def regroup(self, change: MembershipChange) -> None:
        """Divide the work anew among other workers."""
        if self._balance:
            self._balance.regroup(change)
            self._open(change.step)

    @property
    def unmeasured(self) -> bool:
        """Whether nothing has been measured yet, and could be by now; the same on all ranks."""
        return self.balanced and not self._measured and self.taken >= FIRST

    def measurement(self) -> float:
        """Return this worker's seconds of a step, or of its steps of a whole round, since the last `update`.

        NaN if it has taken no step.
        """
        steps = self.shares[self._sync.comm.rank] if self._by_steps else 1
        return steps * self._spent / self._parts if self._parts else math.nan

    def update(self, seconds: Sequence[float]) -> None:
        """Divide the work anew, where all are together.

        Args:
            seconds: [W], each worker's `measurement`.
        """
        if not self._balance:
            return
        self._balance.measured(seconds)
        self._spent, self._parts, self._measured = 0.0, 0, True
        self._open(self._taken)

    def state_dict(self) -> dict[str, Any]:
        """Return numbers and lists, where all are together; nothing where all are equal."""
        if not self._balance:
            return {}
        counted = {"taken": self._taken, "spent": self._spent, "parts": self._parts, "measured": self._measured}
        return {"balance": self._balance.state_dict(), **counted}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`, after the Synchronizer has; CheckpointError where it does not fit."""
        if not self._balance:
            return
        self._balance.load_state_dict(saved["balance"])
        self._spent, self._parts, self._measured = saved["spent"], saved["parts"], saved["measured"]
        self._open(saved["taken"])
