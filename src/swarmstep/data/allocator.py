"""Who gets how much work, so that unequal workers finish together: from measured seconds to whole shares."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from swarmstep.checkpoint import fields
from swarmstep.errors import CheckpointError, UsageError

LEAST = 1e-9  # seconds of a measurement
APART = (
    0.5  # two amounts of work that differ by less, relatively, do not tell start-up from time per unit in noise
)


@dataclass(frozen=True)
class Cost:
    """What work costs one worker: `start + units * unit` seconds; infinite where it is silent.

    A *unit* is an example of a step's batch, or a local step of a round. As long as one amount of work has been
    seen, `start` cannot be told from `unit`: it is 0, the cost is proportional, and `known` is False. `units` and
    `seconds` are the last measurement.
    """

    start: float
    unit: float
    known: bool
    units: int
    seconds: float

    def of(self, units: float) -> float:
        """Return the seconds that so many units take."""
        return self.start + units * self.unit


EQUAL = Cost(0.0, 1.0, known=False, units=1, seconds=1.0)  # of workers of which nothing is known


def observe(cost: Cost | None, units: int, seconds: float, smoothing: float = 0.5) -> Cost:
    """Return the cost after a measurement.

    Two amounts that differ by half give start-up and time per unit, at once. Afterwards, and where the two do not
    go together (the worker was disturbed in between), the cost as a whole follows the measurement: it becomes
    slower or faster, and keeps its form. So shares settle where the *measured* seconds are equal, even if the form
    is wrong. The first measurement, and one before or after silence, counts in full.

    Args:
        cost: before (None: nothing was measured).
        units: done, at least 1.
        seconds: what they took, above 0; infinite: the worker is silent.
        smoothing: weight of the new measurement, above 0 and at most 1; 1 forgets the past.
    """
    if cost is None or not math.isfinite(seconds) or not math.isfinite(cost.unit):
        return Cost(0.0, seconds / units, known=False, units=units, seconds=seconds)
    latest = replace(cost, units=units, seconds=seconds)
    if abs(units - cost.units) > APART * cost.units:
        unit = (seconds - cost.seconds) / (units - cost.units)
        if 0.0 < unit * units <= seconds * (1 + 1e-9):
            found = replace(latest, start=max(0.0, seconds - unit * units), unit=unit, known=True)
            return _between(cost, found, smoothing if cost.known else 1.0)
    pace = seconds / cost.of(units)
    return _between(cost, replace(latest, start=cost.start * pace, unit=cost.unit * pace), smoothing)


def _between(old: Cost, new: Cost, weight: float) -> Cost:
    if weight == 1.0:
        return new
    start, unit = (a + weight * (b - a) for a, b in ((old.start, new.start), (old.unit, new.unit)))
    return replace(new, start=start, unit=unit)


def solve(total: int, costs: Sequence[Cost], least: int = 1, most: Sequence[float] = ()) -> list[float]:
    """Return the shares b [W], real numbers of sum `total`, with which the slowest worker is done first.

    ::

        b_j = (T - start_j) / unit_j, but at least `least` and at most most_j       T: so that sum b = total

    All that are at no limit take equally long. Silent ones count as infinitely slow: they get `least`, or what the
    others cannot hold, in equal parts.

    Args:
        total: at least `least` for each, at most the sum of `most`.
        costs: of each worker.
        least: at least 1.
        most: of each worker, at least `least`; empty: there are no limits.
    """
    high = list(most) or [math.inf] * len(costs)
    shares = [float(least)] * len(costs)
    quick = [j for j, cost in enumerate(costs) if math.isfinite(cost.of(1))]
    silent = [j for j in range(len(costs)) if j not in quick]
    held = min(total - least * len(silent), math.fsum(high[j] for j in quick))
    for some, part, of in ((quick, held, costs), (silent, total - held, [EQUAL] * len(costs))):
        if some:
            found = _fill(part, [of[j] for j in some], least, [high[j] for j in some])
            for j, share in zip(some, found, strict=True):
                shares[j] = share
    return shares


def _fill(total: float, costs: Sequence[Cost], low: float, high: Sequence[float]) -> list[float]:
    """Return the shares of workers none of which is silent: `solve`, by filling all up to the same time T."""
    ends = [(cost.of(low), cost.of(most)) for cost, most in zip(costs, high, strict=True)]

    def held(time: float) -> float:
        """What all can do until then."""
        parts = ((time - cost.start) / cost.unit for cost in costs)
        return math.fsum(min(most, max(low, part)) for most, part in zip(high, parts, strict=True))

    times = sorted({time for pair in ends for time in pair})
    last = min(bisect.bisect_left(times, total, key=held), len(times) - 1)
    before, after = times[max(0, last - 1)], times[last]  # T lies between the two
    free = [j for j, (first, full) in enumerate(ends) if first <= before and full >= after and full > first]
    shares = [most if full <= before else low for most, (_, full) in zip(high, ends, strict=True)]
    left = total - math.fsum(share for j, share in enumerate(shares) if j not in free)
    speeds = {j: 1.0 / costs[j].unit for j in free}
    speed, started = math.fsum(speeds.values()), any(costs[j].start for j in free)
    for j in free:  # (T - start_j) / unit_j, written so that equal starts cancel exactly
        others = math.fsum((costs[i].start - costs[j].start) * speeds[i] for i in free) if started else 0.0
        shares[j] = min(high[j], max(low, (left + others) * speeds[j] / speed))
    return shares


def whole(total: int, shares: Sequence[float], least: int = 1, most: Sequence[float] = ()) -> list[int]:
    """Return whole numbers of sum `total`, each from `least` to its `most`, next to `shares`, which have that sum.

    Largest remainders: each share is rounded down, and what is left goes to those that lost most, the lower rank
    first among equals.

    Raises:
        UsageError: the total is less than `least` for each, or more than the sum of `most`.
    """
    high = list(most) or [math.inf] * len(shares)
    if least < 1 or total < least * len(shares):
        raise UsageError(
            f"cannot share {total} among {len(shares)} workers; expected at least {max(1, least)} for each"
        )
    if total > sum(high) or min(high) < least:
        limits = ", ".join(f"{limit:g}" for limit in high)
        raise UsageError(
            f"cannot share {total} among {len(shares)} workers of which each can hold at most {limits}; expected "
            f"limits of at least {least}, and a sum of at least {total}, found {sum(high):g}"
        )
    parts = [int(min(limit, max(least, math.floor(share)))) for share, limit in zip(shares, high, strict=True)]
    left = total - sum(parts)
    ranked = sorted(range(len(parts)), key=lambda j: parts[j] - shares[j])
    for j in itertools.cycle(ranked):
        if left <= 0:
            break
        if parts[j] < high[j]:
            parts[j], left = parts[j] + 1, left - 1
    for _ in range(-left):  # some were raised to the least, or rounding has added up
        parts[max(range(len(parts)), key=lambda j: (parts[j] > least, parts[j] - shares[j]))] -= 1
    return parts


class Allocator:
    """Divides a fixed amount of work anew after each measurement, the same on all ranks.

    Its answers follow from the measurements alone: ranks that hear the same ones have the same shares.

    Args:
        workers: W, at least 1.
        total: units of work, examples of a step or local steps of a round, at least W.
        smoothing: weight of a new measurement, as in `observe`.
        band: dead band: shares change only where that saves more than this part of the time, 0 to below 1.
        least: units that each worker gets, at least 1.
        most: units that each worker can hold, its memory's limit; empty: any number.

    Attributes:
        shares: int [W], each at least `least`, of sum `total`; equal at first.

    Raises:
        UsageError: an argument is out of its range.

    Source: Ye, Zhou, Shi, Sun, Lv, DBS: Dynamic Batch Size for Distributed Deep Neural Network Training, arXiv
    2007.11831, and its authors' code: shares in proportion to the measured throughput. What differs is ours: the
    start-up cost, smoothing, the dead band, largest remainders (theirs drop examples), at least 1 for each, so
    that a worker that was slow or silent is measured and may come back; see docs/decisions/022-balanced-work.md.
    """

    def __init__(
        self,
        workers: int,
        total: int,
        smoothing: float = 0.5,
        band: float = 0.05,
        least: int = 1,
        most: Sequence[float] = (),
    ) -> None:
        if not 0.0 < smoothing <= 1.0 or not 0.0 <= band < 1.0:
            raise UsageError(
                f"balance: expected smoothing above 0 and at most 1, and a band of at least 0 and below 1, found "
                f"{smoothing} and {band}"
            )
        if most and len(most) != workers:
            raise UsageError(f"balance: expected a limit for each of {workers} workers, found {len(most)}")
        self.total, self._smoothing, self._band, self._least, self._most = total, smoothing, band, least, most
        self.costs: list[Cost | None] = [None] * workers
        self.shares = self.of(total)
        self._measured = self.shares  # what the next measurement is of; 0: nothing

    def update(self, seconds: Sequence[float]) -> list[int]:
        """Return the new shares.

        Args:
            seconds: [W], what each worker spent computing its present share, without waiting for others. Infinite:
                silent. NaN or not above 0: nothing was measured.

        Raises:
            UsageError: there is not one number for each worker.
        """
        if len(seconds) != len(self.shares):
            raise UsageError(f"balance: expected seconds of {len(self.shares)} workers, found {len(seconds)}")
        for j, (spent, units) in enumerate(zip(seconds, self._measured, strict=True)):
            if spent > 0 and units:
                self.costs[j] = observe(self.costs[j], units, max(spent, LEAST), self._smoothing)
        if any(self.costs):
            shares = self.of(self.total)
            if self._seconds(shares) < (1.0 - self._band) * self._seconds(self.shares):
                self.shares = shares
        self._measured = self.shares
        return self.shares

    def regroup(
        self, sources: Sequence[int | None], total: int, most: Sequence[float] = (), *, worked: bool = False
    ) -> list[int]:
        """Return the shares of a group that has changed, by what is known of those who stay.

        A newcomer counts as a worker of mean speed until it has been measured.

        Args:
            sources: for each worker its place in the group before, None for a newcomer.
            total: units of work, of the new group.
            most: of the new group's workers, as in the class.
            worked: whether the next measurement is of the shares before.
        """
        self.costs = [None if source is None else self.costs[source] for source in sources]
        before = [0 if source is None else self._measured[source] for source in sources]
        self.total, self._most = total, most
        self.shares = self.of(total)
        self._measured = before if worked else self.shares
        return self.shares

    def _seconds(self, shares: list[int]) -> float:
        """Return what the slowest takes; a silent worker with the least does not count."""
        found = [cost.of(b) for cost, b in zip(self._known(), shares, strict=True)]
        return max(
            (t for t, b in zip(found, shares, strict=True) if b > self._least or math.isfinite(t)), default=0.0
        )

    def of(self, total: int) -> list[int]:
        """Return the shares of another total, by the costs known now."""
        return whole(total, solve(total, self._known(), self._least, self._most), self._least, self._most)

    def _known(self) -> list[Cost]:
        """Return the costs, where one has not been measured that of a worker of mean speed."""
        known = [cost for cost in self.costs if cost and math.isfinite(cost.unit)]
        start = math.fsum(cost.start for cost in known) / max(1, len(known))
        speed = math.fsum(1.0 / cost.unit for cost in known) / max(1, len(known))
        mean = Cost(start, 1.0 / speed, known=False, units=1, seconds=1.0) if known else EQUAL
        return [cost or mean for cost in self.costs]

    def state_dict(self) -> dict[str, Any]:
        """Return numbers and lists."""
        rows = [[c.start, c.unit, float(c.known), float(c.units), c.seconds] if c else [] for c in self.costs]
        return {"shares": list(self.shares), "costs": rows, "measured": list(self._measured)}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from a `state_dict` of as many workers and the same total.

        Raises:
            CheckpointError: it does not fit; nothing was loaded then.
        """
        shares, rows = fields.field(saved, "shares"), fields.field(saved, "costs")
        if len(shares) != len(self.shares) or len(rows) != len(shares) or sum(shares) != self.total:
            raise CheckpointError(
                f"balance: expected {len(self.shares)} shares of sum {self.total}, found {shares}; use the "
                "workers and the batch, or steps, of the checkpoint"
            )
        self.shares = [int(share) for share in shares]
        self._measured = [int(units) for units in saved.get("measured", shares)]  # older ones have none
        self.costs = [Cost(r[0], r[1], bool(r[2]), int(r[3]), r[4]) if r else None for r in rows]
