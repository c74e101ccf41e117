"""Texts for numbers and conclusions; unknown values are a dash, never NaN."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from swarmstep.compare.labels import link_in_words
from swarmstep.compare.sections import MethodRow, Section
from swarmstep.compare.statistics import Estimate
from swarmstep.console import in_bytes

DASH = "\N{EN DASH}"  # for unknown values
NONE = Estimate(math.nan, math.nan, math.nan, 0)


def duration(seconds: float) -> str:
    """Return a duration in readable units: "45 ms", "12.3 s", "3 min 20 s", "2 h 5 min"."""
    if 0 < seconds < 0.9995:
        return f"{seconds * 1e3:.0f} ms" if seconds >= 0.0095 else f"{seconds * 1e3:.2g} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    for big, small, size, part in (("min", "s", 60, 1), ("h", "min", 3600, 60), ("d", "h", 86400, 3600)):
        whole, rest = divmod(round(seconds / part), size // part)
        if whole * size < {"min": 3600, "h": 86400}.get(big, math.inf):
            return f"{whole} {big} {rest} {small}" if rest else f"{whole} {big}"
    raise AssertionError("unreachable")


def _score(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.4g}"


FORMS: Mapping[str, Callable[[float], str]] = {
    "accuracy": _score,
    "loss": _score,
    "steps": "{:,.0f}".format,
    "bytes": in_bytes,
    "seconds": duration,
}


def value(number: float, kind: str) -> str:
    """Return a number of a kind in `FORMS` as text; a dash if it is not finite."""
    return FORMS[kind](number) if math.isfinite(number) else DASH


def interval(estimate: Estimate, kind: str) -> str:
    """Return "low to high"; "" if there is no interval, or if it reads the same as the mean."""
    if not (math.isfinite(estimate.low) and math.isfinite(estimate.high)):
        return ""
    low, high = value(estimate.low, kind), value(estimate.high, kind)
    return "" if low == high == value(estimate.mean, kind) else f"{low} to {high}"


def name(row: MethodRow) -> str:
    """Return the method of a row and its n: "swarm, n = 64"."""
    return f"{row.method}, n = {row.every}"


def plural(count: int, noun: str) -> str:
    """Return "1 seed", "3 seeds"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


class Quantity(NamedTuple):
    """What a section is ranked by: a kind of `FORMS`, whether at the target, headings for the best and for one."""

    kind: str
    at_target: bool
    best: str
    one: str

    def of(self, row: MethodRow) -> Estimate:
        """Return the quantity of a row; NaN if not all of its seeds reached the target."""
        if not self.at_target:
            return getattr(row, self.kind)
        return at_target(row, self.kind)


def at_target(row: MethodRow, kind: str) -> Estimate:
    """Return the cost of reaching the target; NaN unless all seeds did: a mean over some would be biased."""
    costs = row.to_target
    return getattr(costs, kind) if costs and costs.reached == costs.count else NONE


def ranked_by(section: Section) -> Quantity:
    """Return the quantity by which the rows of a section are ranked."""
    if section.target and any(math.isfinite(at_target(row, "seconds").mean) for row in section.rows):
        link = f" over {link_in_words(section.link)}" if section.link else ""
        return Quantity("seconds", True, f"First at {section.target}{link}", f"Time to {section.target}{link}")
    if section.target:
        return Quantity("steps", True, f"Fewest steps to {section.target}", f"Steps to {section.target}")
    if any(math.isfinite(row.accuracy.mean) for row in section.rows):
        what = f"test {section.score} at the end"
        return Quantity("accuracy", False, f"Highest {what}", what.capitalize())
    return Quantity("loss", False, "Lowest test loss at the end", "Test loss at the end")


class Conclusion(NamedTuple):
    """A section in one sentence of three parts: "First at ...", "swarm, n = 64", "1.2 times as fast as ..."."""

    question: str
    winner: str
    rest: str

    def __str__(self) -> str:
        return f"{self.question}: {self.winner}" + (f" \N{EM DASH} {self.rest}" if self.rest else "")


def conclusion(section: Section) -> Conclusion:
    """Return the conclusion of a section: who is first, by how much, and if that is chance; or why not."""
    by = ranked_by(section)
    if len(section.rows) == 1 and math.isfinite(by.of(section.rows[0]).mean):
        (row,) = section.rows
        alone = f"{name(row)}, {plural(len(row.seeds), 'seed')}; there is nothing to compare it with"
        return Conclusion(by.one, _amount(row, by), alone)
    ranked = [row for row in section.rows if row.rank is not None]
    if not ranked:
        reasons = dict.fromkeys(row.verdict.removeprefix("not ranked: ") for row in section.rows)
        return Conclusion(by.best, "not ranked", "; ".join(reasons) or "no runs")
    leading = [row for row in ranked if row.rank == 1]
    behind = [row for row in ranked if row.rank != 1]
    if len(leading) > 1:
        return Conclusion(by.best, "a tie", _tie(leading, behind, by))
    others = [row for row in behind if row.method != leading[0].method] or behind
    if others:
        return Conclusion(by.best, name(leading[0]), _lead(leading[0], others[0], by))
    complete = [row for row in section.rows if row.to_target and row.to_target.reached == row.to_target.count]
    only = "the only one that reached it with all its seeds" if complete == leading else "no other one is ranked"
    return Conclusion(by.best, name(leading[0]), f"{_amount(leading[0], by)}; {only}")


def _tie(leading: Sequence[MethodRow], behind: Sequence[MethodRow], by: Quantity) -> str:
    named = [name(row) for row in leading[:4]]
    more = [f"{len(leading) - 4} more"] if len(leading) > 4 else []
    between = (
        f"{plural(min(len(row.seeds) for row in leading), 'seed')} cannot tell {enumeration(named + more)} apart"
    )
    return between + (f"; {_beside(leading[0], behind[0], by)}" if behind else "")


def _lead(best: MethodRow, other: MethodRow, by: Quantity) -> str:
    """Return by how much the best is ahead of a row that is behind: beyond chance, or it would share the rank."""
    seeds = plural(min(len(best.seeds), len(other.seeds)), "seed")
    return f"{_amount(best, by)}; {_beside(best, other, by)}, beyond chance with {seeds}"


def _amount(row: MethodRow, by: Quantity) -> str:
    return value(by.of(row).mean, by.kind) + " steps" * (by.kind == "steps")


def _beside(best: MethodRow, other: MethodRow, by: Quantity) -> str:
    first, second = by.of(best).mean, by.of(other).mean
    if not (by.at_target and first > 0):
        return f"{name(other)} has {value(second, by.kind)}"
    ratio = f"{second / first:.2g}" if second < 10 * first else f"{second / first:.0f}"
    return f"{name(other)} takes {ratio} times as {'long' if by.kind == 'seconds' else 'many'}"


def enumeration(words: Sequence[str]) -> str:
    """Return "a", "a and b", "a, b and c"."""
    return " and ".join([*([", ".join(words[:-1])] if len(words) > 1 else []), *words[-1:]])


def timing(section: Section) -> str:
    """Return where the seconds of a section come from."""
    if section.real:
        return (
            f"seconds measured in real processes{f' over {link_in_words(section.link)}' if section.link else ''}"
        )
    if section.link:
        return f"seconds by the virtual clock for {link_in_words(section.link)}"
    if section.condition.get("speeds", "None") != "None":
        return "virtual seconds: a step takes each worker as many as its speed says, sending takes none"
    return "no seconds: simulated, and no link was named"


def chosen(row: MethodRow) -> str:
    """Return the settings of a row, and how many tuning compared."""
    settings = ", ".join(f"{key} {text}" for key, text in row.chosen.items())
    best_of = f"best of {row.tried}" if row.tried > 1 else ""
    return f"{settings} ({best_of})" if settings and best_of else settings or best_of or DASH


def target_of(section: Section) -> tuple[str, float] | None:
    """Return ("accuracy" or "loss", the number) of the target that `section.target` describes."""
    number = re.search(r"-?\d+(?:\.\d+)?(?:e-?\d+)?$", section.target)
    return ("loss" if "loss" in section.target else "accuracy", float(number[0])) if number else None


def ranges(numbers: Sequence[int]) -> str:
    """Return sorted numbers as ranges: "0 to 4, 7"."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and spans[-1][1] == number - 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(f"{a} to {b}" if b > a else str(a) for a, b in spans) or "none"
