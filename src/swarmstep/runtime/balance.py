"""Each worker of a training loop gets as much work as fits, so that nobody waits for the slowest."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from swarmstep.arguments import check_type
from swarmstep.data.allocator import Allocator
from swarmstep.errors import UsageError
from swarmstep.runtime.synchronizer import Synchronizer
from swarmstep.signal import Event, Round
from swarmstep.when import Balanced


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

    What counts as computing is the time outside of the Synchronizer. If the loop also waits for other workers
    there, in a collective of its own, say, call `measured` in place of `update`. Made at the same point on all
    ranks.

    Args:
        sync: of a group that is not elastic; its strategy's card says that weights count.
        batch: mean examples of a step and worker, at least 1 (None: by steps).
        smoothing: weight of a new measurement, above 0 and at most 1.
        band: shares change only where that saves more than this part of the time.
        least: what each worker gets; with BatchNorm, which cannot train on one example, 2 by batch.

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
    ) -> None:
        check_type("Balance: sync", sync, Synchronizer)
        _check(sync, batch)
        self._sync, self._by_batch = sync, batch is not None
        when, size = sync.strategy.when, sync.comm.size
        mean = batch if batch is not None else when.n if isinstance(when, Balanced) else 0
        self._allocator = Allocator(size, size * mean, smoothing, band, least)
        self._seen = sync.steps  # at the last measurement

    @property
    def shares(self) -> tuple[int, ...]:
        """The shares of all workers, in rank order."""
        return tuple(self._allocator.shares)

    @property
    def batch(self) -> int:
        """How many examples this worker takes in its next step; UsageError where the balance is by steps."""
        if not self._by_batch:
            raise UsageError("Balance.batch: by steps the batches stay; expected Balance(sync, batch=...)")
        return self._allocator.shares[self._sync.comm.rank]

    def update(self, event: Event | None) -> None:
        """Take note of what `Synchronizer.step` returned; after a round, divide the work anew.

        Raises:
            UsageError: rounds land later than they start, or are of parts of the model: their seconds are those of
                other shares. Call `measured`.
        """
        if not isinstance(event, Round):
            return
        options = self._sync.options
        if options.delay or options.fragments > 1:
            found = f"{options.delay} and {options.fragments}"
            raise UsageError(
                f"Balance.update: expected no delay and 1 fragment, found {found}; call measured() with the "
                "seconds of the workers"
            )
        steps = self._sync.steps - self._seen if self._by_batch else 1
        self._seen = self._sync.steps
        self.measured([seconds / max(1, steps) for seconds in event.compute_seconds])

    def measured(self, seconds: Sequence[float]) -> None:
        """Divide the work anew after a measurement, by steps right after a round.

        Args:
            seconds: [W], the same on all ranks: what each worker spent computing in a step, by batch, or between
                two rounds, by steps; infinite where it is silent, NaN where nothing was measured.
        """
        self._allocator.update(seconds)
        if not self._by_batch:
            self.plan(self._allocator.shares[self._sync.comm.rank])

    def plan(self, steps: int) -> None:
        """Let this worker's next round start after so many steps of its own."""
        for state in self._sync.triggers:
            trigger = state._asdict()
            trigger["steps"].fill_(steps)
            trigger["next"].fill_(self._sync.steps + steps)

    def of(self, total: int) -> list[int]:
        """Return the shares [W] of another amount of work, at least W, as things are."""
        return self._allocator.of(total)

    def state_dict(self) -> dict[str, Any]:
        """Return numbers and lists: the shares and what is known of the workers; the same on all ranks."""
        return {"allocator": self._allocator.state_dict(), "seen": self._seen}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`; load the Synchronizer's before. CheckpointError where it does not fit."""
        self._allocator.load_state_dict(saved["allocator"])
        self._seen = int(saved["seen"])


def _check(sync: Synchronizer, batch: int | None) -> None:
    strategy, name = sync.strategy, type(sync.strategy).__name__
    if sync.comm.elastic:
        raise UsageError("Balance: an elastic group has equal shares; expected a fixed group")
    if batch is not None and not 1 <= batch < math.inf:
        raise UsageError(f"Balance: expected a batch of at least 1 example, found {batch}")
    if batch is None and not isinstance(strategy.when, Balanced):
        raise UsageError(
            f"Balance: by steps the trigger sets the rounds; expected {name}(when=Balanced(n)), found "
            f"{strategy.when}; or give batch=..."
        )
    if batch is not None and strategy.when.per_rank:
        raise UsageError(f"Balance: by batch all take the same steps; expected Every(n), found {strategy.when}")
    card = getattr(strategy, "card", None)
    if card is not None and not card.weighted:
        raise UsageError(
            f"Balance: {name} does not count workers by their weights; take a method whose card says it does"
        )
