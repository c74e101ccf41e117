"""The arithmetic of a plan: what a step and a round cost, from what was measured once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from swarmstep.comm.metered import Call
from swarmstep.errors import UsageError
from swarmstep.network.collective_costs import seconds_of
from swarmstep.network.link import Link
from swarmstep.train.lockstep_coordinator import LOOK_EVERY

FORWARD = 1 / 3  # of a step's time; while the rest, the backward pass, goes on, DDP sends
TESTED = 100  # steps between two tests of trust after the first rounds, or each round where n is larger
LOOK = 64  # bytes of each worker when `swarmstep train` looks at all of them, each `LOOK_EVERY` steps
GOAL = 0.95  # of the speed without rounds
FEWEST = 20  # rounds of a run; with fewer the swarm does not find its reach
LONGEST = 100_000  # n
EVERY = (1, 8, 32, 128)


@dataclass(frozen=True)
class Timed:
    """What calls took between the processes.

    Args:
        seconds: until the last worker had its result.
        busy: seconds of a worker's processor in that time, which no computing can hide where cores are shared.
    """

    seconds: float
    busy: float


@dataclass(frozen=True)
class RoundWork:
    """One round of a method.

    Args:
        calls: what each worker sends.
        own_seconds: of a worker's own work, such as coding.
        probe_seconds: of a test of trust; 0 for methods that test nobody.
        timed: the calls, where they were measured; None: they are computed from the link.
    """

    calls: tuple[Call, ...]
    own_seconds: float
    probe_seconds: float = 0.0
    timed: Timed | None = None


@dataclass(frozen=True)
class Work:
    """What a workload costs a worker, without a network.

    Args:
        step_seconds: of a local step.
        parameters: of the model, and its averaged buffers: elements of the vector.
        rounds: by codec; "" without one.
        bytes_kept: by a worker: model, gradient, optimizer and method.
        reduced: an all-reduce of the gradient, as DDP does it, where it was measured.
        looked: a look at all workers, where it was measured.
    """

    step_seconds: float
    parameters: int
    rounds: Mapping[str, RoundWork]
    bytes_kept: int
    reduced: Timed | None = None
    looked: Timed | None = None

    def slowed(self, step_seconds: float) -> Work:
        """Return the work of a worker whose steps take so long, because others share its cores."""
        factor = step_seconds / self.step_seconds
        rounds = {
            codec: replace(
                found, own_seconds=factor * found.own_seconds, probe_seconds=factor * found.probe_seconds
            )
            for codec, found in self.rounds.items()
        }
        return replace(self, step_seconds=step_seconds, rounds=rounds)


@dataclass(frozen=True)
class Price:
    """What a step costs.

    Args:
        method: "ddp", or the strategy.
        every: n.
        codec: "" without one.
        delay: local steps that are computed while a round is on its way.
        seconds: of a step, rounds included, on average.
        computing: share of the time in which a worker computes, 0 to 1.
    """

    method: str
    every: int
    codec: str
    delay: int
    seconds: float
    computing: float


@dataclass(frozen=True)
class Plan:
    """The answer.

    Args:
        strategy: of all prices but the first.
        work: what was measured.
        workers: how many.
        link: of each.
        prices: DDP's, then of each n without a codec, with it, and with overlap, too.
        most: the largest n that leaves a run `FEWEST` rounds.
        smallest: variant ("float32", "int8", "int8, overlapped") -> the price at the smallest n for `GOAL`; None
            where none up to `most` reaches it.
        advised: the variant with the smallest n of all, the plainest where several have it; where no n reaches the
            goal, the fastest at `most`.
    """

    strategy: str
    work: Work
    workers: int
    link: Link
    prices: Sequence[Price]
    most: int
    smallest: Mapping[str, Price | None]
    advised: Price


def plan(
    work: Work,
    workers: int,
    link: Link,
    strategy: str = "swarm",
    every: Sequence[int] = EVERY,
    steps: int | None = None,
) -> Plan:
    """Return what each n would cost on a link.

    Args:
        work: as `measured` returns it, or by hand.
        workers: at least 2.
        link: between each worker and the switch.
        strategy: whose rounds `work` has, for the words.
        every: each n to price.
        steps: of the run, which needs some rounds (None: as many as it takes).

    Raises:
        UsageError: a number is out of its range.
    """
    if workers < 2:
        raise UsageError(f"plan: expected at least 2 workers, found {workers}; one alone has nobody to wait for")
    if not (work.step_seconds > 0 and all(n >= 1 for n in every)):
        raise UsageError(
            f"plan: expected a step of more than 0 s and n from 1, found {work.step_seconds}, {every}"
        )
    table = _Table(work, workers, link, strategy)
    variants = [(codec, late) for codec in work.rounds for late in (False, True)]
    variants.remove(("", True))
    variants += [("", True)] if len(work.rounds) == 1 else []
    most = LONGEST if steps is None else max(1, steps // FEWEST)
    prices = [table.ddp(), *(table.price(n, codec, late) for codec, late in variants for n in every)]
    smallest = {
        f"{codec or 'float32'}{', overlapped' * late}": table.smallest(codec, late, most)
        for codec, late in variants
    }
    found = [price for price in smallest.values() if price]
    fastest = min((table.price(most, *variant) for variant in variants), key=lambda price: price.seconds)
    advised = min(found, key=lambda price: price.every) if found else fastest
    return Plan(strategy, work, workers, link, prices, most, smallest, advised)


@dataclass(frozen=True)
class _Table:
    """The arithmetic of a plan."""

    work: Work
    workers: int
    link: Link
    strategy: str

    def sending(self, timed: Timed | None, *calls: Call) -> Timed:
        """Return what calls take."""
        return timed or Timed(sum(seconds_of(call, self.link) for call in calls), 0.0)

    def alone(self) -> float:
        """Return the seconds of a step without rounds, with its share of a look at all workers."""
        look = self.sending(self.work.looked, Call("gather", LOOK, self.workers))
        return self.work.step_seconds + look.seconds / LOOK_EVERY

    def ddp(self) -> Price:
        """Return the price of DDP: its gradients travel from the first layer whose gradient is there on."""
        step = self.work.step_seconds
        sending = self.sending(self.work.reduced, Call("mean", 4 * self.work.parameters, self.workers))
        seconds = self.alone() + max(sending.busy, sending.seconds - (1 - FORWARD) * step)
        return Price("ddp", 1, "", 0, seconds, step / seconds)

    def price(self, every: int, codec: str, late: bool) -> Price:
        """Return the price of rounds of n steps."""
        round_, step = self.work.rounds[codec], self.work.step_seconds
        sending = self.sending(round_.timed, *round_.calls)
        delay = min(every, math.ceil(sending.seconds / step)) if late else 0
        own = round_.own_seconds + round_.probe_seconds * min(1.0, every / TESTED)
        waiting = max(sending.busy, sending.seconds - delay * step)
        seconds = self.alone() + (waiting + own) / every
        return Price(self.strategy, every, codec, delay, seconds, step / seconds)

    def smallest(self, codec: str, late: bool, most: int) -> Price | None:
        """Return the price at the smallest n, up to `most`, with `GOAL` of the speed without rounds."""
        goal = self.alone() / GOAL
        if self.price(most, codec, late).seconds > goal:
            return None
        low, high = 0, most
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self.price(middle, codec, late).seconds <= goal else (middle, high)
        return self.price(high, codec, late)
