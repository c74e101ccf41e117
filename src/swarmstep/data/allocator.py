"""Who gets how much work, so that unequal workers finish together: from measured seconds to whole shares."""

from __future__ import annotations

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

    def of(self, units: int) -> float:
        """Return the seconds that so many units take."""
        return self.start + units * self.unit


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


def solve(total: int, costs: Sequence[Cost], least: int = 1) -> list[float]:
    """Return the shares b [W], real numbers of sum `total`, with which all workers take equally long.

    ::

        b_j = (T - start_j) / unit_j        T = (total + sum start_j / unit_j) / sum 1 / unit_j

    A worker that would get less than `least` gets that, and the others share the rest. Silent ones count as
    infinitely slow; where all are, shares are equal.
    """
    shares, rest = [float(least)] * len(costs), [j for j, cost in enumerate(costs) if math.isfinite(cost.of(1))]
    if not rest:
        return [total / len(costs)] * len(costs)
    while rest:
        left = total - least * (len(costs) - len(rest))
        speeds = {j: 1.0 / costs[j].unit for j in rest}
        speed = math.fsum(speeds.values())
        started = math.fsum(costs[j].start * speeds[j] for j in rest)
        for j in rest:  # the equation above, written so that equal starts cancel exactly
            others = math.fsum((costs[i].start - costs[j].start) * speeds[i] for i in rest) if started else 0.0
            shares[j] = (left + others) * speeds[j] / speed
        small = {j for j in rest if shares[j] < least}
        if not small:
            break
        for j in small:
            shares[j] = float(least)
        rest = [j for j in rest if j not in small]
    return shares


def whole(total: int, shares: Sequence[float], least: int = 1) -> list[int]:
    """Return whole numbers of sum `total`, each at least `least`, next to `shares`, of that sum to rounding.

    Largest remainders: each share is rounded down, and what is left goes to those that lost most, the lower rank
    first among equals.

    Raises:
        UsageError: the total is less than `least` for each.
    """
    if least < 1 or total < least * len(shares):
        raise UsageError(
            f"cannot share {total} among {len(shares)} workers; expected at least {max(1, least)} for each"
        )
    parts = [max(least, math.floor(share)) for share in shares]
    left = total - sum(parts)
    ranked = sorted(range(len(parts)), key=lambda j: parts[j] - shares[j])
    for j in itertools.islice(itertools.cycle(ranked), max(0, left)):
        parts[j] += 1
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
        self, workers: int, total: int, smoothing: float = 0.5, band: float = 0.05, least: int = 1
    ) -> None:
        if not 0.0 < smoothing <= 1.0 or not 0.0 <= band < 1.0:
            raise UsageError(
                f"balance: expected smoothing above 0 and at most 1, and a band of at least 0 and below 1, found "
                f"{smoothing} and {band}"
            )
        self.total, self._smoothing, self._band, self._least = total, smoothing, band, least
        self.costs: list[Cost | None] = [None] * workers
        self.shares = whole(total, [total / workers] * workers, least)

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
        for j, spent in enumerate(seconds):
            if spent > 0:
                self.costs[j] = observe(self.costs[j], self.shares[j], max(spent, LEAST), self._smoothing)
        costs = self._known()
        if costs:
            shares = self.of(self.total)
            if self._seconds(costs, shares) < (1.0 - self._band) * self._seconds(costs, self.shares):
                self.shares = shares
        return self.shares

    def _seconds(self, costs: list[Cost], shares: list[int]) -> float:
        """Return what the slowest takes; a silent worker with the least does not count."""
        found = [cost.of(b) for cost, b in zip(costs, shares, strict=True)]
        return max(
            (t for t, b in zip(found, shares, strict=True) if b > self._least or math.isfinite(t)), default=0.0
        )

    def of(self, total: int) -> list[int]:
        """Return the shares of another total, by the costs known now."""
        costs = self._known()
        equal = [total / len(self.shares)] * len(self.shares)
        return whole(total, solve(total, costs, self._least) if costs else equal, self._least)

    def _known(self) -> list[Cost]:
        """Return the costs, empty as long as one has not been measured."""
        known = [cost for cost in self.costs if cost]
        return known if len(known) == len(self.costs) else []

    def state_dict(self) -> dict[str, Any]:
        """Return numbers and lists."""
        rows = [[c.start, c.unit, float(c.known), float(c.units), c.seconds] if c else [] for c in self.costs]
        return {"shares": list(self.shares), "costs": rows}

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
        self.costs = [Cost(r[0], r[1], bool(r[2]), int(r[3]), r[4]) if r else None for r in rows]
