"""What `figures.html` shows: curves and their data, results over n, who was distrusted when."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from swarmstep.compare.sections import Distrusted, Section
from swarmstep.compare.statistics import Estimate
from swarmstep.report.labels import DASH, interval, ranges, target_of, value
from swarmstep.train.work_done import HEAD, in_words

MANY = 8  # curves: if there are more, not all are shown at first


class DataTable(NamedTuple):
    """A table of text; the first cell of each row is its head."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]


class Choice(NamedTuple):
    """Radio buttons that choose `key`; `options` maps its values to labels, the default first."""

    key: str
    label: str
    options: Mapping[str, str]


class Figure(NamedTuple):
    """A plot that page.js draws from the data of a section (by index), its controls, and its data as a table."""

    kind: str
    section: int
    text: str
    data: DataTable
    choices: Sequence[Choice] = ()


class TrustRow(NamedTuple):
    """When a rank of a run was distrusted: as bars (x and width in percent), and as text."""

    method: str
    every: int
    seed: int
    rank: int
    bars: Sequence[tuple[str, str]]
    steps: str


class TrustFigure(NamedTuple):
    """All ranks that were ever distrusted, and the runs in which none was."""

    title: str
    axis: str
    rows: Sequence[TrustRow]
    never: str


class ClockErrorTable(NamedTuple):
    """How far the virtual clock was from the real one; `worst` is the largest error, "" if none is known."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    worst: str


def plots(sections: Sequence[Section]) -> dict[str, Any]:
    """Return what the page's script draws, as plain JSON: NaN is null, and a method has one style everywhere."""
    methods = dict.fromkeys(row.method for section in sections for row in section.rows)
    methods |= dict.fromkeys(name for section in sections for name in section.by_n)
    methods |= dict.fromkeys(curve.method for section in sections for curve in section.curves)
    every = sorted({curve.every for section in sections for curve in section.curves})
    return {"methods": list(methods), "every": every, "sections": [_plots(section) for section in sections]}


def _plots(section: Section) -> dict[str, Any]:
    at_first = shown(section)
    curves = [
        {
            "method": curve.method,
            "every": curve.every,
            "shown": (curve.method, curve.every) in at_first,
            "points": [[_plain(number) for number in point] for point in curve.points],
        }
        for curve in section.curves
    ]
    kind, methods = by_n(section)
    return {
        "title": section.title,
        "curves": curves,
        "by_n": {name: [[n, _plain(estimate)] for n, estimate in points] for name, points in methods.items()},
        "measure": kind,
        "score": section.score,
        "target": target_of(section),
    }


def _plain(number: float | Estimate) -> Any:
    if isinstance(number, Estimate):
        return [_plain(part) for part in number[:3]]
    return number if math.isfinite(number) else None


def shown(section: Section) -> set[tuple[str, int]]:
    """Return method and n of the curves shown at first: all, or if they are many each method's best n."""
    drawn = {(curve.method, curve.every) for curve in section.curves}
    if len(section.curves) <= MANY:
        return drawn
    best: dict[str, tuple[str, int]] = {}
    for row in section.rows:
        if (row.method, row.every) in drawn:
            best.setdefault(row.method, (row.method, row.every))
    return set(best.values())


def curves(section: Section, index: int) -> Figure | None:
    """Return the figure of the curves; None if there are none."""
    points = [point for curve in section.curves for point in curve.points]
    if not points:
        return None
    timed = any(math.isfinite(point.seconds) for point in points)
    judged = any(math.isfinite(point.accuracy.mean) for point in points)
    choices = (
        Choice("y", "Show", ({"accuracy": section.score} if judged else {}) | {"loss": "loss"}),
        Choice("x", "against", {"step": "steps", "bytes": "bytes sent"} | ({"seconds": "time"} if timed else {})),
        Choice("range", "Range", {"close": "close-up", "all": "all"}),
    )
    few = len(shown(section)) < len(section.curves)
    note = "Each method at its best n; the legend shows the others. " if few else ""
    heads = ["method", "n", "step", "sent", "time", section.score, "95 % interval", "loss", "95 % interval"]
    rows = [
        [
            curve.method,
            str(curve.every),
            value(point.step, "steps"),
            value(point.bytes, "bytes"),
            value(point.seconds, "seconds"),
            *_both(point.accuracy, "accuracy"),
            *_both(point.loss, "loss"),
        ]
        for curve in section.curves
        for point in curve.points
    ]
    data = DataTable("Quality on the test set while training", heads, rows)
    return Figure("curves", index, f"{note}Bands are 95 % intervals over the seeds.", data, choices)


def over_n(section: Section, index: int) -> Figure | None:
    """Return the figure of the accuracies (or losses) at the end over n; None if there is only one n."""
    kind, methods = by_n(section)
    if len({n for points in methods.values() for n, _ in points}) < 2:
        return None
    shown = section.score if kind == "accuracy" else kind
    heads = ["method", "n", f"test {shown}", "95 % interval", "seeds"]
    rows = [
        [method, str(n), *_both(estimate, kind), str(estimate.count)]
        for method, points in methods.items()
        for n, estimate in points
    ]
    text = "The cost of synchronizing less often: n is the number of steps between two synchronizations."
    return Figure("by_n", index, text, DataTable(f"Test {shown} at the end against n", heads, rows))


def by_n(section: Section) -> tuple[str, Mapping[str, Sequence[tuple[int, Estimate]]]]:
    """Return "accuracy" and that of each method over n; "loss" where no accuracy has a meaning."""
    if any(math.isfinite(estimate.mean) for points in section.by_n.values() for _, estimate in points):
        return "accuracy", section.by_n
    losses: dict[str, list[tuple[int, Estimate]]] = {}
    for row in sorted(section.rows, key=lambda row: row.every):
        if row.seeds:
            losses.setdefault(row.method, []).append((row.every, row.loss))
    return "loss", losses


def _both(estimate: Estimate, kind: str) -> tuple[str, str]:
    return value(estimate.mean, kind), interval(estimate, kind) or DASH


def trust(section: Section) -> TrustFigure | None:
    """Return which ranks were distrusted when; None if no method of the section judges its workers."""
    if not section.trust:
        return None
    last = max(run.steps for run in section.trust)
    rows: list[TrustRow] = []
    never: dict[str, list[int]] = {}
    for run in section.trust:
        spans = _spans(run)
        if not spans:
            never.setdefault(f"{run.method}, n = {run.every}", []).append(run.seed)
        for rank, of_rank in spans.items():
            steps = ", ".join(f"{begin:,} to {end:,}" for begin, end in of_rank)
            rows.append(TrustRow(run.method, run.every, run.seed, rank, _bars(of_rank, last), steps))
    named = [f"{name} (seed{'s' * (len(seeds) > 1)} {ranges(sorted(seeds))})" for name, seeds in never.items()]
    return TrustFigure("Distrusted workers", f"step 0 to {last:,}", rows, "; ".join(named))


def work(section: Section) -> DataTable | None:
    """Return what each worker did by the methods under which workers differ; None if there is none."""
    heads, rows = ["method", "n", *HEAD], list[list[str]]()
    for run in section.work:
        rows += [[run.method, str(run.every), *row] for row in in_words(run.workers)]
    return DataTable("What each worker did, means over the seeds", heads, rows) if rows else None


def _spans(run: Distrusted) -> dict[int, list[tuple[int, int]]]:
    """Return for each rank that was ever distrusted from which step to which."""
    spans: dict[int, list[tuple[int, int]]] = {}
    ends = [*[step for step, _ in run.changes[1:]], run.steps]
    for (begin, ranks), end in zip(run.changes, ends, strict=False):
        for rank in ranks:
            of_rank = spans.setdefault(rank, [])
            goes_on = bool(of_rank) and of_rank[-1][1] == begin
            of_rank.append((of_rank.pop()[0] if goes_on else begin, end))
    return dict(sorted(spans.items()))


def _bars(spans: Sequence[tuple[int, int]], steps: int) -> list[tuple[str, str]]:
    def percent(count: int) -> str:
        return f"{100 * count / max(steps, 1):.2f}%"

    return [(percent(begin), percent(end - begin)) for begin, end in spans]


def clock_errors(section: Section) -> ClockErrorTable | None:
    """Return how far the virtual clock was from the real one; None if it was not compared."""
    if not section.clock_errors:
        return None
    rows = [
        [
            one.method,
            str(one.every),
            value(one.real, "seconds"),
            value(one.virtual, "seconds"),
            f"{100 * one.error:+.1f} %" if math.isfinite(one.error) else DASH,
        ]
        for one in section.clock_errors
    ]
    finite = [abs(one.error) for one in section.clock_errors if math.isfinite(one.error)]
    worst = f"{100 * max(finite):.1f} %" if finite else ""
    heads = ["method", "n", "measured", "virtual clock", "error"]
    return ClockErrorTable("Virtual clock and measured time", heads, rows, worst)
