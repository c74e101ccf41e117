"""The headline: time to a test accuracy on a real slow link, as multiples of an infinitely fast network.

    python benchmarks/headline.py          # writes docs/headline.svg from benchmarks/results/evidence-link.json

An infinitely fast network takes, with each seed, the steps that synchronous training (`ddp`) needs to the target,
times the step time of the same processes without communication (the mean over the seeds of `independent`).
"""

from __future__ import annotations

import functools
import math
from html import escape
from pathlib import Path
from typing import NamedTuple

from swarmstep.compare import results
from swarmstep.compare.costs import first_reaching
from swarmstep.compare.results import Point
from swarmstep.compare.statistics import Estimate, estimate

SOURCE = Path(__file__).parent / "results" / "evidence-link.json"
FIGURE = Path(__file__).parents[1] / "docs" / "headline.svg"
NAMES = {
    "ddp": "torch's DistributedDataParallel",
    "synchronous": "gradient averaging",
    "local-sgd": "local SGD",
    "diloco": "DiLoCo",
    "pso-ps": "PSO-PS",
    "swarm": "informed swarm",
}


class Line(NamedTuple):
    """The cost of one method, over the seeds that reached the target."""

    method: str
    every: int
    reached: int
    seeds: int
    steps: Estimate
    seconds: Estimate
    megabytes: Estimate
    multiple: Estimate


def name(line: Line) -> str:
    """Return the name of a method in prose, with its n and options."""
    base, *options = line.method.split("+")
    texts = [
        option.partition("=")[2] if option.startswith("codec") else option.replace("=", " ") for option in options
    ]
    rounds = [f"n = {line.every}"] if line.every > 1 else []
    return ", ".join([NAMES.get(base, base), *rounds, *texts])


@functools.cache
def lines(source: Path = SOURCE) -> list[Line]:
    """Return a line for each method that communicates, the fastest first."""
    loaded = results.load(source)
    target, runs = loaded.about["target"], [cell for cell in loaded.cells if cell.purpose == "run"]
    independent = [c.points[-1] for c in runs if c.real and c.method == "independent" and not c.failed]
    step = estimate([point.seconds / point.step for point in independent]).mean
    ideal: dict[int, float] = {}
    by_method: dict[tuple[str, int], dict[int, Point | None]] = {}
    for cell in sorted(runs, key=lambda cell: cell.method, reverse=True):
        point = first_reaching(cell, target)
        # DDP takes the steps of synchronous training, apart from the order of sums; it counts where both were run.
        if point and cell.method in ("ddp", "synchronous"):
            ideal[cell.seed] = point.step * step
        if cell.real and cell.method != "independent":
            by_method.setdefault((cell.method, cell.group.every), {})[cell.seed] = point
    unsorted = [_line(method, every, points, ideal) for (method, every), points in by_method.items()]
    return sorted(unsorted, key=lambda line: (line.reached < line.seeds, line.multiple.mean))


def _line(method: str, every: int, points: dict[int, Point | None], ideal: dict[int, float]) -> Line:
    reached = {seed: point for seed, point in sorted(points.items()) if point}
    return Line(
        method,
        every,
        len(reached),
        len(points),
        estimate([point.step for point in reached.values()], "positive"),
        estimate([point.seconds for point in reached.values()], "positive"),
        estimate([point.bytes / 1e6 for point in reached.values()], "positive"),
        estimate([point.seconds / ideal[seed] for seed, point in reached.items() if seed in ideal], "positive"),
    )


STYLE = """
text { font: 13px system-ui, sans-serif; fill: #24292f; }
.small { font-size: 11px; fill: #57606a; }
.bar { fill: #57606a; } .ours { fill: #0b62a4; }
.line { stroke: #57606a; stroke-dasharray: 3 3; } .whisker { stroke: #24292f; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; } .small { fill: #9198a1; } .bar { fill: #7d8590; } .ours { fill: #58a6ff; }
  .line { stroke: #9198a1; } .whisker { stroke: #e6edf3; }
}"""


def svg(source: Path = SOURCE) -> str:
    """Return the figure: one bar a method, on a logarithmic scale that starts at half the ideal time."""
    shown = [line for line in lines(source) if line.reached == line.seeds]
    accuracy = results.load(source).about["target"]["accuracy"]
    left, width, row = 270, 400, 30
    top = max(line.multiple.high if math.isfinite(line.multiple.high) else line.multiple.mean for line in shown)

    def x(multiple: float) -> float:
        return round(left + width * math.log(max(multiple, 0.5) / 0.5) / math.log(top / 0.5), 1)

    height = row * len(shown) + 60
    parts = [f'<line class="line" x1="{x(1)}" x2="{x(1)}" y1="30" y2="{height - 28}"/>']
    parts.append(f'<text class="small" x="{x(1)}" y="22" text-anchor="middle">an infinitely fast network</text>')
    for i, line in enumerate(shown):
        y, m = 40 + row * i, line.multiple
        kind = "ours" if line.method.startswith("swarm") else "bar"
        parts.append(f'<text x="{left - 10}" y="{y + 14}" text-anchor="end">{escape(name(line))}</text>')
        parts.append(f'<rect class="{kind}" x="{left}" y="{y}" width="{round(x(m.mean) - left, 1)}" height="18"/>')
        if math.isfinite(m.low):
            parts.append(f'<line class="whisker" x1="{x(m.low)}" x2="{x(m.high)}" y1="{y + 9}" y2="{y + 9}"/>')
        end = m.high if math.isfinite(m.high) else m.mean
        parts.append(f'<text x="{x(end) + 8}" y="{y + 14}">{m.mean:.2f}</text>')
    about = f"Time to {100 * accuracy:g} % test accuracy, infinitely fast network = 1; mean and 95 % interval"
    end = f'<text class="small" x="{left + width + 70}" y="{height - 8}" text-anchor="end">'
    parts.append(f"{end}{escape(about)}; log scale</text>")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 80} {height}" role="img" '
        f'aria-label="{escape(about)}">\n<style>{STYLE}</style>\n' + "\n".join(parts) + "\n</svg>\n"
    )


if __name__ == "__main__":
    FIGURE.write_text(svg())
