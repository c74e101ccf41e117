"""The arithmetic of a plan: what a step and a round cost, from what was measured once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from swarmstep.comm.metered import Call
from swarmstep.errors import UsageError
from swarmstep.network.collective_costs import seconds_of
from swarmstep.network.link import Link

FORWARD = 1 / 3  # of a step's time; while the rest, the backward pass, goes on, DDP sends
TESTED = 100  # steps between two tests of trust after the first rounds, or each round where n is larger
GOAL = 0.95  # of the time spent computing
EVERY = (1, 8, 32, 128)


@dataclass(frozen=True)
class RoundWork:
    """One round of a method.

    Args:
        calls: what each worker sends.
        own_seconds: of a worker's own work, such as coding.
        probe_seconds: of a test of trust; 0 for methods that test nobody.
    """

    calls: tuple[Call, ...]
    own_seconds: float
    probe_seconds: float = 0.0


@dataclass(frozen=True)
class Work:
    """What a workload costs a worker, without a network.

    Args:
        step_seconds: of a local step.
        parameters: of the model, and its averaged buffers: elements of the vector.
        rounds: by codec; "" without one.
        bytes_kept: by a worker: model, gradient, optimizer and method.
    """

    step_seconds: float
    parameters: int
    rounds: Mapping[str, RoundWork]
    bytes_kept: int


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
        smallest: variant ("float32", "int8", "int8, overlapped") -> the price at the smallest n for `GOAL`.
    """

    strategy: str
    work: Work
    workers: int
    link: Link
    prices: Sequence[Price]
    smallest: Mapping[str, Price | None]

    @property
    def advised(self) -> Price | None:
        """The variant with the smallest n of all; the plainest where several have it."""
        found = [price for price in self.smallest.values() if price]
        return min(found, key=lambda price: price.every) if found else None


def plan(work: Work, workers: int, link: Link, strategy: str = "swarm", every: Sequence[int] = EVERY) -> Plan:
    """Return what each n would cost on a link.

    Args:
        work: as `measured` returns it, or by hand.
        workers: at least 2.
        link: between each worker and the switch.
        strategy: whose rounds `work` has, for the words.
        every: each n to price.

    Raises:
        UsageError: a number is out of its range.
    """
    if workers < 2:
        raise UsageError(f"plan: expected at least 2 workers, found {workers}; one alone has nobody to wait for")
    if not (work.step_seconds > 0 and all(n >= 1 for n in every)):
        raise UsageError(
            f"plan: expected a step of more than 0 s and n from 1, found {work.step_seconds}, {every}"
        )
    variants = [(codec, late) for codec in work.rounds for late in (False, True)]
    variants.remove(("", True))
    variants += [("", True)] if len(work.rounds) == 1 else []
    prices = [_ddp(work, workers, link)]
    prices += [_price(work, link, strategy, n, codec, late) for codec, late in variants for n in every]
    smallest = {
        f"{codec or 'float32'}{', overlapped' * late}": _smallest(work, link, strategy, codec, late)
        for codec, late in variants
    }
    return Plan(strategy, work, workers, link, prices, smallest)


def _ddp(work: Work, workers: int, link: Link) -> Price:
    """Return the price of DDP: its gradients travel from the first layer whose gradient is there on."""
    sending = seconds_of(Call("mean", 4 * work.parameters, workers), link)
    step = work.step_seconds
    seconds = FORWARD * step + max((1 - FORWARD) * step, sending)
    return Price("ddp", 1, "", 0, seconds, step / seconds)


def _price(work: Work, link: Link, strategy: str, every: int, codec: str, late: bool) -> Price:
    round_, step = work.rounds[codec], work.step_seconds
    sending = sum(seconds_of(call, link) for call in round_.calls)
    delay = min(every, math.ceil(sending / step)) if late else 0
    own = round_.own_seconds + round_.probe_seconds * min(1.0, every / TESTED)
    waiting = max(0.0, sending - delay * step)
    seconds = step + (waiting + own) / every
    return Price(strategy, every, codec, delay, seconds, step / seconds)


def _smallest(work: Work, link: Link, strategy: str, codec: str, late: bool) -> Price | None:
    """Return the price at the smallest n with which `GOAL` of the time is spent computing; None up to 100,000."""
    low, high = 0, 1
    while _price(work, link, strategy, high, codec, late).computing < GOAL:
        low, high = high, 2 * high
        if high > 100_000:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        enough = _price(work, link, strategy, middle, codec, late).computing >= GOAL
        low, high = (low, middle) if enough else (middle, high)
    return _price(work, link, strategy, high, codec, late)
