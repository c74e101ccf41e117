"""The headline table of a section: who is ahead, by how much, at what cost."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from swarmstep.compare.analysis import Estimate, MethodRow, Section
from swarmstep.report.labels import DASH, Quantity, at_target, chosen, interval, plural, ranked_by, value
from swarmstep.report.markup import Markup, box, join, tag

_INSIDE = r"(?<=[\d±]) (?=[\d±]|s$)"  # where no line may end: "1.31 ± 0.42 s"


class _Column(NamedTuple):
    group: str  # over several columns
    head: str
    kind: str
    of: Callable[[MethodRow], Estimate]


def headline(section: Section) -> Markup:
    """Return the table of all rows: the best first, those that are not ranked apart at the end."""
    by = ranked_by(section)
    columns = [column for column in _columns(section) if _known(column, section.rows)]
    scale = _Scale([by.of(row) for row in section.rows])
    ranked = [row for row in section.rows if row.rank is not None]
    unranked = [row for row in section.rows if row.rank is None]
    width = len(columns) + (7 if section.target else 6)
    bodies = [tag("tbody", *[_row(row, section, columns, scale) for row in ranked])] if ranked else []
    if unranked:
        apart = tag("tr", tag("th", "Not ranked", colspan=str(width), scope="rowgroup"), class_="apart")
        lines = [_row(row, section, columns, scale) for row in unranked]
        bodies.append(tag("tbody", apart, *lines, class_="unranked"))
    label = f"Ranking: {by.best}"
    return box(tag("table", _head(section, columns, by, scale), *bodies, class_="headline"), label)


def _columns(section: Section) -> list[_Column]:
    def at(kind: str) -> Callable[[MethodRow], Estimate]:
        return lambda row: at_target(row, kind)

    def end(kind: str) -> Callable[[MethodRow], Estimate]:
        return lambda row: getattr(row, kind)

    until = f"Until {section.target}"
    reaching = [("time", "seconds"), ("steps", "steps"), ("sent", "bytes")]
    ending = [("accuracy", "accuracy"), ("loss", "loss"), ("sent", "bytes"), ("time", "seconds")]
    found = [_Column(until, head, kind, at(kind)) for head, kind in reaching if section.target]
    return found + [_Column("At the end", head, kind, end(kind)) for head, kind in ending]


def _known(column: _Column, rows: Sequence[MethodRow]) -> bool:
    return any(math.isfinite(column.of(row).mean) for row in rows)


def _head(section: Section, columns: Sequence[_Column], by: Quantity, scale: _Scale) -> Markup:
    groups = list(dict.fromkeys(column.group for column in columns))
    names = [("", 5)]
    for group in groups:
        reached = bool(section.target) and group != "At the end"
        names.append((group, sum(column.group == group for column in columns) + reached))
    if section.target and not any(column.group != "At the end" for column in columns):
        names.insert(1, (f"Until {section.target}", 1))
    over = [tag("th", text, colspan=str(width), scope="colgroup") for text, width in (*names, ("", 2))]
    heads = [tag("th", text, scope="col", class_=text) for text in ("rank", "method", "n")]
    heads.append(tag("th", by.kind, tag("small", scale.ends(by.kind)), scope="col", class_="forest"))
    heads.append(tag("th", "verdict", scope="col"))
    heads += [tag("th", "reached", scope="col")] if section.target else []
    heads += [tag("th", column.head, scope="col", class_="number") for column in columns]
    heads += [tag("th", text, scope="col") for text in ("tuning chose", "seeds")]
    return tag("thead", tag("tr", *over, class_="groups"), tag("tr", *heads))


def _row(row: MethodRow, section: Section, columns: Sequence[_Column], scale: _Scale) -> Markup:
    by = ranked_by(section)
    cells = [
        tag("td", str(row.rank) if row.rank else DASH, class_="rank"),
        tag("th", *_breakable(row.method), scope="row", class_="method"),
        tag("td", str(row.every), class_="number"),
        tag("td", scale.draw(by.of(row)), class_="forest"),
        tag("td", tag("span", re.sub(_INSIDE, "\N{NO-BREAK SPACE}", row.verdict)), class_="verdict"),
    ]
    if section.target:
        found = row.to_target
        text = f"{found.reached} of {found.count}" if found else DASH
        cells.append(tag("td", text, class_="number"))
    cells += [tag("td", *_estimate(column.of(row), column.kind), class_="number") for column in columns]
    cells.append(tag("td", chosen(row), class_="chosen"))
    failed = [tag("small", f"{len(row.failed)} failed")] if row.failed else []
    cells.append(tag("td", str(len(row.seeds)), *failed, class_="number"))
    return tag("tr", *cells, class_="leading" if row.rank == 1 else None)


def _breakable(method: str) -> list[str]:
    """Return a method's name with places where a line may end, before its settings."""
    first, *rest = method.split("+")
    return [first, *[part for setting in rest for part in (tag("wbr"), f"+{setting}")]]


def _estimate(estimate: Estimate, kind: str) -> list[Markup]:
    between = interval(estimate, kind)
    return [join([value(estimate.mean, kind)]), *([tag("small", between)] if between else [])]


class _Scale:
    """Draws estimates on one axis, so that the eye sees which intervals overlap; logarithmic over a wide range."""

    def __init__(self, estimates: Sequence[Estimate]) -> None:
        ends = [end for estimate in estimates for end in estimate[:3] if math.isfinite(end)]
        self._low, self._high = (min(ends), max(ends)) if ends else (math.nan, math.nan)
        self._log = self._low > 0 and self._high / self._low > 5

    def ends(self, kind: str) -> str:
        """Return where the axis begins and ends, in words."""
        if not self._high > self._low:
            return ""
        return f"{value(self._low, kind)} to {value(self._high, kind)}{', log' if self._log else ''}"

    def draw(self, estimate: Estimate) -> Markup:
        """Return a dot for the mean on a line for the interval."""
        if not math.isfinite(estimate.mean):
            return tag("small", DASH)
        parts: list[Markup] = []
        if math.isfinite(estimate.low):
            ends = {"x1": self._at(estimate.low), "x2": self._at(estimate.high)}
            parts.append(tag("line", y1="50%", y2="50%", **ends))
        parts.append(tag("circle", cx=self._at(estimate.mean), cy="50%", r="4"))
        count = plural(estimate.count, "seed")
        return tag("svg", *parts, role="img", aria_label=f"mean and interval of {count}")

    def _at(self, number: float) -> str:
        if not self._high > self._low:
            return "50%"
        turn = math.log if self._log else float
        share = (turn(number) - turn(self._low)) / (turn(self._high) - turn(self._low))
        return f"{4 + 92 * share:.2f}%"
