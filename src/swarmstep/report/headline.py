"""What `headline.html` shows, the table of a section: which method is ahead, by how much, at what cost."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from swarmstep.compare.sections import MethodRow, Section
from swarmstep.compare.statistics import Estimate
from swarmstep.report.labels import DASH, at_target, chosen, interval, plural, ranked_by, value

AT_END = "At the end"
_UNBROKEN = r"(?<=[\d±]) (?=[\d±]|s$)"  # spaces at which no line may break: "1.31 ± 0.42 s"


class ForestMark(NamedTuple):
    """A mean and its interval as positions on the table's axis, in percent; `low` is "" without an interval."""

    mean: str
    low: str
    high: str
    label: str


class HeadlineRow(NamedTuple):
    """One row as text; `method` is its name, then its settings."""

    rank: str
    method: Sequence[str]
    every: str
    mark: ForestMark | None
    verdict: str
    reached: str
    estimates: Sequence[tuple[str, str]]  # mean and interval of each column
    chosen: str
    seeds: str
    failed: int


class Headline(NamedTuple):
    """The table: `groups` are heads over several columns, with their widths; `heads` those of the estimates."""

    title: str
    groups: Sequence[tuple[str, int]]
    ranked_by: str
    axis: str
    has_target: bool
    heads: Sequence[str]
    ranked: Sequence[HeadlineRow]
    unranked: Sequence[HeadlineRow]


class _Column(NamedTuple):
    group: str
    head: str
    kind: str
    of: Callable[[MethodRow], Estimate]


def headline(section: Section) -> Headline:
    """Return the table of all rows: the best first, those that are not ranked at the end."""
    by = ranked_by(section)
    columns = [
        column for column in _columns(section) if any(math.isfinite(column.of(row).mean) for row in section.rows)
    ]
    axis = _Axis([by.of(row) for row in section.rows])
    return Headline(
        title=f"Ranking: {by.best}",
        groups=_groups(section, columns),
        ranked_by=by.kind,
        axis=axis.ends(by.kind),
        has_target=bool(section.target),
        heads=[column.head for column in columns],
        ranked=[_row(row, section, columns, axis.mark(by.of(row))) for row in section.rows if row.rank],
        unranked=[_row(row, section, columns, axis.mark(by.of(row))) for row in section.rows if not row.rank],
    )


def _columns(section: Section) -> list[_Column]:
    def at(kind: str) -> Callable[[MethodRow], Estimate]:
        return lambda row: at_target(row, kind)

    def end(kind: str) -> Callable[[MethodRow], Estimate]:
        return lambda row: getattr(row, kind)

    until = f"Until {section.target}"
    reaching = [("time", "seconds"), ("steps", "steps"), ("sent", "bytes")] if section.target else []
    ending = [(section.score, "accuracy"), ("loss", "loss"), ("sent", "bytes"), ("time", "seconds")]
    columns = [_Column(until, head, kind, at(kind)) for head, kind in reaching]
    return columns + [_Column(AT_END, head, kind, end(kind)) for head, kind in ending]


def _groups(section: Section, columns: Sequence[_Column]) -> list[tuple[str, int]]:
    """Return the heads over the columns: one over rank to verdict, those of the estimates, one over the rest."""
    at_end = sum(column.group == AT_END for column in columns)
    until = [(f"Until {section.target}", 1 + len(columns) - at_end)] if section.target else []  # and "reached"
    ending = [(AT_END, at_end)] if at_end else []
    return [("", 5), *until, *ending, ("", 2)]


def _row(row: MethodRow, section: Section, columns: Sequence[_Column], mark: ForestMark | None) -> HeadlineRow:
    reached = f"{row.to_target.reached} of {row.to_target.count}" if row.to_target else DASH
    estimates = [(column.of(row), column.kind) for column in columns]
    return HeadlineRow(
        rank=str(row.rank or DASH),
        method=row.method.split("+"),
        every=str(row.every),
        mark=mark,
        verdict=re.sub(_UNBROKEN, "\N{NO-BREAK SPACE}", row.verdict),
        reached=reached if section.target else "",
        estimates=[(value(estimate.mean, kind), interval(estimate, kind)) for estimate, kind in estimates],
        chosen=chosen(row),
        seeds=str(len(row.seeds)),
        failed=len(row.failed),
    )


class _Axis:
    """Places estimates on one axis, so that overlapping intervals are seen; logarithmic over a wide range."""

    def __init__(self, estimates: Sequence[Estimate]) -> None:
        ends = [end for estimate in estimates for end in estimate[:3] if math.isfinite(end)]
        self._low, self._high = (min(ends), max(ends)) if ends else (math.nan, math.nan)
        self._log = self._low > 0 and self._high / self._low > 5

    def ends(self, kind: str) -> str:
        """Return where the axis begins and ends."""
        if not self._high > self._low:
            return ""
        return f"{value(self._low, kind)} to {value(self._high, kind)}{', log' if self._log else ''}"

    def mark(self, estimate: Estimate) -> ForestMark | None:
        """Return where an estimate is drawn; None if it is not known."""
        if not math.isfinite(estimate.mean):
            return None
        known = math.isfinite(estimate.low)
        low, high = (self._at(estimate.low), self._at(estimate.high)) if known else ("", "")
        label = f"mean and interval of {plural(estimate.count, 'seed')}"
        return ForestMark(self._at(estimate.mean), low, high, label)

    def _at(self, number: float) -> str:
        if not self._high > self._low:
            return "50%"
        scale = math.log if self._log else float
        share = (scale(number) - scale(self._low)) / (scale(self._high) - scale(self._low))
        return f"{4 + 92 * share:.2f}%"
