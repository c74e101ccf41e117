"""The headline tables in GitHub's Markdown, for READMEs."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from swarmstep.compare.sections import MethodRow, Section
from swarmstep.compare.statistics import Estimate
from swarmstep.report.labels import DASH, at_target, chosen, conclusion, interval, timing, value
from swarmstep.report.notes import notes


def markdown(sections: Sequence[Section]) -> str:
    """Return a table for each section under its title and conclusion, without columns that no row knows."""
    return "\n".join(_section(section) for section in sections)


def _section(section: Section) -> str:
    columns: dict[str, list[str]] = {
        "rank": [str(row.rank or DASH) for row in section.rows],
        "method": [row.method for row in section.rows],
        "n": [str(row.every) for row in section.rows],
    }
    if section.target:
        columns["reached"] = [_reached(row) for row in section.rows]
        for head, kind in (("time to it", "seconds"), ("steps to it", "steps"), ("sent until then", "bytes")):
            columns[head] = _cells(section.rows, kind, lambda row, kind=kind: at_target(row, kind))
    for head, kind in ((section.score, "accuracy"), ("loss", "loss"), ("sent in all", "bytes")):
        columns[head] = _cells(section.rows, kind, lambda row, kind=kind: getattr(row, kind))
    if not section.target:
        columns["time in all"] = _cells(section.rows, "seconds", lambda row: row.seconds)
    columns["verdict"] = [row.verdict for row in section.rows]
    columns["tuned"] = [chosen(row) for row in section.rows]
    columns["seeds"] = [str(len(row.seeds)) for row in section.rows]
    shown = {head: cells for head, cells in columns.items() if any(cell != DASH for cell in cells)}
    lines = [[_plain(cell) for cell in row] for row in (shown, *zip(*shown.values(), strict=True))]
    lines.insert(1, ["---"] * len(shown))
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    about = f"{_plain(str(conclusion(section)))} ({_plain(timing(section))}; means and 95 % intervals)."
    listed = "".join(f"- {_plain(note)}\n" for note in notes(section))
    return f"### {_plain(section.title)}\n\n{about}\n\n{text}\n" + (f"\n{listed}" if listed else "")


def _cells(rows: Sequence[MethodRow], kind: str, of: Callable[[MethodRow], Estimate]) -> list[str]:
    cells: list[str] = []
    for row in rows:
        estimate = of(row)
        between = interval(estimate, kind)
        cells.append(value(estimate.mean, kind) + (f" ({between})" if between else ""))
    return cells


def _reached(row: MethodRow) -> str:
    return f"{row.to_target.reached} of {row.to_target.count}" if row.to_target else DASH


def _plain(text: str) -> str:
    """Return text escaped for Markdown, in one line: names may contain anything."""
    return re.sub(r"([\\`*_\[\]<>|#&~])", r"\\\1", " ".join(text.split()))
