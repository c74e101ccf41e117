"""Each worker of a training loop gets as much work as fits, so that nobody waits for the slowest."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from swarmstep.arguments import check_type
from swarmstep.data.allocator import Allocator
from swarmstep.errors import UsageError
from swarmstep.runtime.synchronizer import Synchronizer
from swarmstep.signal import Event, MembershipChange, Round
from swarmstep.when import Balanced
from swarmstep.when.steps import BalancedState


class Balance:
    """Divides the work among unequal workers anew after each round, the same on all ranks; see `Allocator`.

    By batch: the workers take the same steps, with `balance.batch` examples each::

        balance = Balance(sync, batch=64)  # on average
        inputs, targets = loader.take(balance.batch)
        ...
        balance.update(sync.step(loss, lr, weight=balance.batch))

    By steps, where the strategy's trigger is `Balanced(n)`: the batch stays, and each worker takes as many steps
    between two rounds as it can, n on average::

        balance = Balance(sync)
        ...
        balance.update(sync.step(loss, lr))

    What counts as computing is the time outside of the Synchronizer, or what `Synchronizer.step` was told. If the
    loop also waits for other workers there, in a collective of its own, say, call `measured` in place of `update`.
    Made at the same point on all ranks.

    In an elastic group the work is divided anew when the membership changes, by what is known of those who stay; a
    newcomer counts as a worker of mean speed until it has been measured. Make the balance right after the
    Synchronizer, and tell it all events::

        for event in [sync.step(loss, lr, weight=balance.batch), *sync.events()]:
            balance.update(event)

    Args:
        sync: its strategy's card says that weights count.
        batch: mean examples of a step and worker, at least 1 (None: by steps).
        smoothing: weight of a new measurement, above 0 and at most 1.
        band: shares change only where that saves more than this part of the time.
        least: what each worker gets; with BatchNorm, which cannot train on one example, 2 by batch.
        most: the largest share that each worker can hold, by rank; in an elastic group by slot, the number with
            which a worker's name begins, and not below the mean, since any worker may be left alone. One that is
            not listed has no limit.

    Attributes:
        shares: int [W], the examples of a step, or the steps of a round, of each worker.

    Raises:
        UsageError: an argument is out of its range, or the Synchronizer does not go with it.
    """

    def __init__(
        self,
        sync: Synchronizer,
        batch: int | None = None,
        smoothing: float = 0.5,
        band: float = 0.05,
        least: int = 1,
        most: Sequence[int] = (),
    ) -> None:
        check_type("Balance: sync", sync, Synchronizer)
        _check(sync, batch)
        self._sync, self._by_batch = sync, batch is not None
        when = sync.strategy.when
        self._mean = batch if batch is not None else when.n if isinstance(when, Balanced) else 0
        self._smoothing, self._band, self._least, self._most = smoothing, band, least, tuple(most)
        if sync.comm.elastic and most and min(most) < self._mean:
            raise UsageError(
                f"Balance: most: in an elastic group expected at least {self._mean}, found {min(most)}"
            )
        self._allocator = self._allocator_of(sync.comm.names or [str(rank) for rank in range(sync.comm.size)])
        self._seen = sync.steps  # at the last measurement
        sync.attach("balance", self)

    def _allocator_of(self, names: Sequence[str]) -> Allocator:
        workers = len(names)
        limits = self._limits(names)
        return Allocator(workers, workers * self._mean, self._smoothing, self._band, self._least, limits)

    def _limits(self, names: Sequence[str]) -> list[float]:
        """Return the largest share of each worker; empty where none has a limit."""
        slots = [int(name.partition(".")[0]) for name in names] if self._most else []
        return [self._most[slot] if 0 <= slot < len(self._most) else math.inf for slot in slots]

    @property
    def shares(self) -> tuple[int, ...]:
        """The shares of all workers, in rank order."""
        return tuple(self._allocator.shares)

    @property
    def batch(self) -> int:
        """How many examples this worker takes in its next step.

        Raises:
            UsageError: the balance is by steps, or it was not told that the membership has changed.
        """
        if not self._by_batch:
            raise UsageError("Balance.batch: by steps the batches stay; expected Balance(sync, batch=...)")
        if len(self._allocator.shares) != self._sync.comm.size:
            raise UsageError(
                f"Balance.batch: expected shares of {self._sync.comm.size} workers, found "
                f"{len(self._allocator.shares)}; in an elastic group call update() with each of sync.events()"
            )
        return self._allocator.shares[self._sync.comm.rank]

    def update(self, event: Event | None) -> None:
        """Take note of what `Synchronizer.step` or `events` returned; divide the work anew where it says so.

        Raises:
            UsageError: rounds land later than they start, or are of parts of the model: their seconds are those of
                other shares. Call `measured`.
        """
        if isinstance(event, MembershipChange):
            self.regroup(event)
        if not isinstance(event, Round):
            return
        options = self._sync.options
        if options.delay or options.fragments > 1:
            found = f"{options.delay} and {options.fragments}"
            raise UsageError(
                f"Balance.update: expected no delay and 1 fragment, found {found}; call measured() with the "
                "seconds of the workers"
            )
        steps = event.step - self._seen if self._by_batch else 1
        self._seen = event.step
        self.measured([seconds / max(1, steps) for seconds in event.compute_seconds])

    def measured(self, seconds: Sequence[float]) -> None:
        """Divide the work anew after a measurement, by steps right after a round.

        Args:
            seconds: [W], the same on all ranks: what each worker spent computing in a step, by batch, or between
                two rounds, by steps; infinite where it is silent, NaN where nothing was measured.
        """
        self._allocator.update(seconds)
        self._plan_own()

    def regroup(self, change: MembershipChange) -> None:
        """Divide the work anew in a group that has changed."""
        names, sources = change.names, change.sources
        worked = change.step > self._seen  # the round of that work is still to come
        self._allocator.regroup(sources, len(sources) * self._mean, self._limits(names), worked=worked)
        self._plan_own()

    def _plan_own(self) -> None:
        shares, comm = self._allocator.shares, self._sync.comm
        if not self._by_batch and len(shares) == comm.size:  # else a newcomer is told of what was before
            self.plan(shares[comm.rank], self._mean)

    def plan(self, own: int, length: int) -> None:
        """Let the round that begins here have so many steps of this worker's own, `length` on average."""
        for state in self._sync.triggers:
            if isinstance(state, BalancedState):
                Balanced.plan(state, own, length)

    def of(self, total: int) -> list[int]:
        """Return the shares [W] of another amount of work, at least W, as things are."""
        return self._allocator.of(total)

    def state_dict(self) -> dict[str, Any]:
        """Return numbers and lists: the shares and what is known of the workers; the same on all ranks."""
        return {"allocator": self._allocator.state_dict(), "seen": self._seen}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`; load the Synchronizer's before. CheckpointError where it does not fit.

        In an elastic group it may be of other workers: `regroup` follows.
        """
        if self._sync.comm.elastic:
            workers, names = len(saved["allocator"]["shares"]), self._sync.comm.names
            self._allocator = self._allocator_of(names if workers == len(names) else ["-1"] * workers)
        self._allocator.load_state_dict(saved["allocator"])
        self._seen = int(saved["seen"])


def _check(sync: Synchronizer, batch: int | None) -> None:
    strategy, name = sync.strategy, type(sync.strategy).__name__
    if batch is not None and not 1 <= batch < math.inf:
        raise UsageError(f"Balance: expected a batch of at least 1 example, found {batch}")
    if batch is None and not isinstance(strategy.when, Balanced):
        raise UsageError(
            f"Balance: by steps the trigger sets the rounds; expected {name}(when=Balanced(n)), found "
            f"{strategy.when}; or give batch=..."
        )
    if batch is None and strategy.target == "gradients":
        raise UsageError(f"Balance: {name} synchronizes gradients in each step; give batch=...")
    if batch is not None and (strategy.when.per_rank or isinstance(strategy.when, Balanced)):
        raise UsageError(f"Balance: by batch all take the same steps; expected Every(n), found {strategy.when}")
    card = getattr(strategy, "card", None)
    if card is not None and not card.weighted:
        raise UsageError(
            f"Balance: {name} does not count workers by their weights; take a method whose card says it does"
        )
