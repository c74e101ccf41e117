"""What the page draws: the curves and their data, the numbers over n, and who was distrusted when."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from swarmstep.compare.analysis import Distrusted, Estimate, Section
from swarmstep.report.labels import DASH, interval, ranges, target_of, value
from swarmstep.report.markup import Markup, join, table, tag

MANY = 8  # curves: more are not shown at once unless asked for


def plots(sections: Sequence[Section]) -> dict[str, Any]:
    """Return what the page's script draws, as plain JSON: NaN is null, and a method has one style everywhere."""
    methods = dict.fromkeys(row.method for section in sections for row in section.rows)
    methods |= dict.fromkeys(name for section in sections for name in section.by_n)
    methods |= dict.fromkeys(curve.method for section in sections for curve in section.curves)
    every = sorted({curve.every for section in sections for curve in section.curves})
    return {"methods": list(methods), "every": every, "sections": [_plots(section) for section in sections]}


def _plots(section: Section) -> dict[str, Any]:
    shown = _shown(section)
    curves = [
        {
            "method": curve.method,
            "every": curve.every,
            "shown": (curve.method, curve.every) in shown,
            "points": [[_plain(number) for number in point] for point in curve.points],
        }
        for curve in section.curves
    ]
    kind, over = _by_n(section)
    by_n = {name: [[every, _plain(found)] for every, found in points] for name, points in over.items()}
    return {
        "title": section.title,
        "curves": curves,
        "by_n": by_n,
        "measure": kind,
        "target": target_of(section),
    }


def _plain(number: float | Estimate) -> Any:
    if isinstance(number, Estimate):
        return [_plain(part) for part in number[:3]]
    return number if math.isfinite(number) else None


def _shown(section: Section) -> set[tuple[str, int]]:
    """All curves, or where these are too many, each method's at its best n."""
    if len(section.curves) <= MANY:
        return {(curve.method, curve.every) for curve in section.curves}
    drawn = {(curve.method, curve.every) for curve in section.curves}
    best: dict[str, tuple[str, int]] = {}
    for row in section.rows:
        if (row.method, row.every) in drawn:
            best.setdefault(row.method, (row.method, row.every))
    return set(best.values())


def curves(section: Section, index: int) -> Markup:
    """Return the place where the curves are drawn, its controls, and its data as a table."""
    if not any(curve.points for curve in section.curves):
        return tag("p", "No curves: no run has finished.", class_="note")
    points = [point for curve in section.curves for point in curve.points]
    timed = any(math.isfinite(point.seconds) for point in points)
    judged = any(math.isfinite(point.accuracy.mean) for point in points)
    against = [("step", "steps"), ("bytes", "bytes sent"), *([("seconds", "time")] if timed else [])]
    scores = [*([("accuracy", "accuracy")] if judged else []), ("loss", "loss")]
    controls = tag(
        "div",
        _choice(f"y{index}", "y", "Show", scores),
        _choice(f"x{index}", "x", "against", against),
        _choice(f"r{index}", "range", "Range", [("close", "close-up"), ("all", "all")]),
        class_="controls",
    )
    few = len(_shown(section)) < len(section.curves)
    note = "Each method at its best n; the others can be switched on below. " if few else ""
    rows = (
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
    )
    heads = ["method", "n", "step", "sent", "time", "accuracy", "95 % interval", "loss", "95 % interval"]
    title = "Quality on the test set while training"
    text = f"{note}Bands are 95 % intervals over the seeds."
    return _figure("curves", index, title, text, [controls, _data(heads, rows, title)])


def over_n(section: Section, index: int) -> Markup:
    """Return the place where accuracies (or losses) at the end are drawn over n, and its data as a table."""
    kind, over = _by_n(section)
    if len({n for points in over.values() for n, _ in points}) < 2:
        return Markup()
    rows = (
        [method, str(n), *_both(found, kind), str(found.count)]
        for method, points in over.items()
        for n, found in points
    )
    title = f"Test {kind} at the end against n"
    text = "What talking more rarely costs: n is the number of steps from one synchronization to the next."
    heads = ["method", "n", f"test {kind}", "95 % interval", "seeds"]
    return _figure("by_n", index, title, text, [_data(heads, rows, title)])


def _by_n(section: Section) -> tuple[str, Mapping[str, Sequence[tuple[int, Estimate]]]]:
    """Return "accuracy" and that of each method over n; "loss" where no accuracy has a meaning."""
    if any(math.isfinite(found.mean) for points in section.by_n.values() for _, found in points):
        return "accuracy", section.by_n
    found: dict[str, list[tuple[int, Estimate]]] = {}
    for row in sorted(section.rows, key=lambda row: row.every):
        if row.seeds:
            found.setdefault(row.method, []).append((row.every, row.loss))
    return "loss", found


def _both(estimate: Estimate, kind: str) -> tuple[str, str]:
    return value(estimate.mean, kind), interval(estimate, kind) or DASH


def _figure(kind: str, index: int, title: str, text: str, parts: Sequence[Markup]) -> Markup:
    *controls, data = parts
    canvas = [tag("div", class_="canvas"), tag("div", class_="legend", role="group", aria_label="Curves to show")]
    caption = tag("figcaption", tag("h3", title), tag("p", text))
    return tag("figure", caption, *controls, *canvas, data, data_plot=kind, data_section=str(index))


def _choice(group: str, key: str, label: str, options: Sequence[tuple[str, str]]) -> Markup:
    if len(options) < 2:
        return Markup()
    made: list[Markup] = []
    for i, (given, text) in enumerate(options):
        checked = "" if i == 0 else None
        radio = tag("input", type="radio", name=group, value=given, data_key=key, checked=checked)
        made.append(tag("label", radio, tag("span", text)))
    return tag("fieldset", tag("legend", label), tag("div", *made))


def _data(heads: Sequence[str], rows: Iterable[Sequence[str]], title: str) -> Markup:
    return tag("details", tag("summary", "The data as a table"), table(heads, rows, title))


def trust(section: Section) -> Markup:
    """Return which ranks were distrusted when: a bar for each rank of each run, and the steps in words."""
    if not section.trust:
        return Markup()
    last = max(run.steps for run in section.trust)
    rows: list[Sequence[str]] = []
    calm: dict[str, list[int]] = {}
    for run in section.trust:
        spans = _spans(run)
        if not spans:
            calm.setdefault(f"{run.method}, n = {run.every}", []).append(run.seed)
        for rank, found in spans.items():
            steps = ", ".join(f"{a:,} to {b:,}" for a, b in found)
            rows.append([run.method, str(run.every), str(run.seed), str(rank), _bar(found, last), steps])
    heads = ["method", "n", "seed", "worker", f"step 0 to {last:,}", "distrusted in steps"]
    title = "Who was distrusted when"
    shown = [table(heads, rows, title)] if rows else []
    if calm:
        seeds = {name: f"seed{'s' * (len(found) > 1)} {ranges(sorted(found))}" for name, found in calm.items()}
        named = "; ".join(f"{name} ({found})" for name, found in seeds.items())
        shown.append(tag("p", f"Nobody was ever distrusted by {named}.", class_="note"))
    return tag("section", tag("h3", title), *shown, class_="trust")


def _spans(run: Distrusted) -> dict[int, list[tuple[int, int]]]:
    """For each rank that was ever distrusted: from which step to which."""
    found: dict[int, list[tuple[int, int]]] = {}
    ends = [*[step for step, _ in run.changes[1:]], run.steps]
    for (begin, ranks), end in zip(run.changes, ends, strict=False):
        for rank in ranks:
            spans = found.setdefault(rank, [])
            if spans and spans[-1][1] == begin:
                begin_of_all = spans.pop()[0]
                spans.append((begin_of_all, end))
            else:
                spans.append((begin, end))
    return dict(sorted(found.items()))


def _bar(spans: Sequence[tuple[int, int]], steps: int) -> Markup:
    def share(step: int) -> str:
        return f"{100 * step / max(steps, 1):.2f}%"

    parts = [tag("rect", x="0", y="6", width="100%", height="8", class_="track")]
    parts += [tag("rect", x=share(a), y="6", width=share(b - a), height="8") for a, b in spans]
    return tag("svg", *parts, class_="bar", role="img", aria_label="timeline")


def clock_errors(section: Section) -> Markup:
    """Return how far the virtual clock was from the real one."""
    if not section.clock_errors:
        return Markup()
    rows = [
        [
            found.method,
            str(found.every),
            value(found.real, "seconds"),
            value(found.virtual, "seconds"),
            _off(found.error),
        ]
        for found in section.clock_errors
    ]
    finite = [abs(one.error) for one in section.clock_errors if math.isfinite(one.error)]
    worst = [f"At most {max(finite):.1%} off. ".replace("%", " %")] if finite else []
    title = "The virtual clock against the real one"
    text = join([*worst, "Above 0: it takes the run to be longer than it was."])
    heads = ["method", "n", "real", "virtual", "error"]
    return tag("section", tag("h3", title), tag("p", text), table(heads, rows, title))


def _off(error: float) -> str:
    return f"{100 * error:+.1f} %" if math.isfinite(error) else DASH
