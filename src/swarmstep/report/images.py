"""The plots of a report as files for papers and slides: PNG or SVG, drawn by Matplotlib."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from importlib import resources
from typing import Any, Literal

from swarmstep.compare.sections import Section
from swarmstep.compare.statistics import Estimate
from swarmstep.optional_imports import library
from swarmstep.report.figures import by_n, shown

AXES = {"step": "steps", "bytes": "bytes sent by a worker", "seconds": "seconds"}
MARKERS = "os^Dv<>p"
FEW = 5  # entries of a legend: if there are more, it stands beside the plot
SIZE, RESOLUTION = (5.0, 3.4), 300  # inches, dots an inch


def images(sections: Sequence[Section], form: Literal["png", "svg"]) -> dict[str, bytes]:
    """Return the plots: file name without its suffix -> content.

    For each section the test accuracy (or loss, where there is none) and the loss against steps, bytes and, where
    they are known, seconds; and against n, where there are several. Bands and bars are 95 % intervals.

    Raises:
        UsageError: Matplotlib is not installed.
    """
    drawn: dict[str, bytes] = {}
    methods = list(dict.fromkeys(row.method for section in sections for row in section.rows))
    for number, section in enumerate(sections, 1):
        stem = f"{number}-{re.sub(r'[^a-z0-9]+', '-', section.title.lower()).strip('-')}"
        points = [point for curve in section.curves for point in curve.points]
        kinds = [kind for kind in ("accuracy", "loss") if any(_known(getattr(p, kind)) for p in points)]
        for kind in kinds:
            for axis in AXES:
                if any(math.isfinite(getattr(point, axis)) for point in points):
                    drawn[f"{stem}-{kind}-{axis}"] = _curves(section, kind, axis, methods, form)
        if len({n for of in by_n(section)[1].values() for n, _ in of}) > 1:
            drawn[f"{stem}-n"] = _over_n(section, methods, form)
    return drawn


def _curves(section: Section, kind: str, axis: str, methods: list[str], form: str) -> bytes:
    figure, plot = _plot(section, f"test {kind}", AXES[axis])
    wanted = shown(section)
    for curve in section.curves:
        points = [p for p in curve.points if _known(getattr(p, kind)) and math.isfinite(getattr(p, axis))]
        if (curve.method, curve.every) in wanted and points:
            x, y = [getattr(point, axis) for point in points], [getattr(point, kind) for point in points]
            style = _style(curve.method, methods)
            plot.plot(x, [e.mean for e in y], label=f"{curve.method}, n = {curve.every}", markersize=3, **style)
            if all(math.isfinite(e.low) for e in y):
                band = ([e.low for e in y], [e.high for e in y])
                plot.fill_between(x, *band, color=style["color"], alpha=0.15, linewidth=0)
    if axis != "step":
        plot.set_xscale("log")
    return _saved(figure, plot, form)


def _over_n(section: Section, methods: list[str], form: str) -> bytes:
    kind, of = by_n(section)
    figure, plot = _plot(section, f"test {kind} at the end", "n, steps between two rounds")
    for method, points in of.items():
        means = [estimate.mean for _, estimate in points]
        bars = [
            [max(0.0, e.mean - e.low) if math.isfinite(e.low) else 0.0 for _, e in points],
            [max(0.0, e.high - e.mean) if math.isfinite(e.high) else 0.0 for _, e in points],
        ]
        style = _style(method, methods)
        plot.errorbar([n for n, _ in points], means, bars, label=method, markersize=4, capsize=2, **style)
    ns = sorted({n for points in of.values() for n, _ in points})
    plot.set_xscale("log", base=2)
    plot.set_xticks(ns, [str(n) for n in ns])
    return _saved(figure, plot, form)


def _plot(section: Section, y: str, x: str) -> tuple[Any, Any]:
    module = library("matplotlib.figure", "plots", "plots need")
    figure = module.Figure(figsize=SIZE, layout="constrained")
    plot = figure.subplots()
    plot.set(title=section.title, xlabel=x, ylabel=y)
    plot.title.set_fontsize("medium")
    plot.spines[["top", "right"]].set_visible(False)
    plot.grid(alpha=0.25, linewidth=0.5)
    return figure, plot


def _style(method: str, methods: list[str]) -> dict[str, Any]:
    """Return the colour and marker that a method has everywhere: those of the page."""
    css = resources.files("swarmstep.report").joinpath("page.css").read_text(encoding="utf-8")
    colours = re.findall(r"--c\d: light-dark\((#\w+),", css)
    index = methods.index(method) if method in methods else 0
    return {"color": colours[index % len(colours)], "marker": MARKERS[index % len(MARKERS)], "linewidth": 1.4}


def _saved(figure: Any, plot: Any, form: str) -> bytes:
    entries = len(plot.get_legend_handles_labels()[1])
    if entries > FEW:
        figure.set_size_inches(SIZE[0] + 2.2, max(SIZE[1], 0.17 * entries + 0.5))
        figure.legend(loc="outside right upper", frameon=False, fontsize="x-small")
    else:
        plot.legend(frameon=False, fontsize="small")
    file = io.BytesIO()
    figure.savefig(file, format=form, dpi=RESOLUTION, metadata={"Date": None} if form == "svg" else None)
    return file.getvalue()


def _known(estimate: Estimate) -> bool:
    return math.isfinite(estimate.mean)
