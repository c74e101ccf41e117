"""What runs cost: seconds by the virtual clock, and what it took to reach a target."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from swarmstep.compare.results import Cell, Point, grouped
from swarmstep.errors import UsageError
from swarmstep.network import link as links
from swarmstep.network.virtual_clock import VirtualClock


def clocked(cells: Sequence[Cell], link: str, options: Mapping[str, Any]) -> list[Cell]:
    """Return simulated cells with the virtual clock's seconds in their points; failed ones as they are.

    A step takes the same time for all: the median over the cells, so that noise of the machine favours no
    method; a round that of the median over the seeds of its method and n.

    Args:
        cells: of one condition.
        link: what joins the workers, as text.
        options: `compute` (seconds of a step, None to take what was measured), `stragglers`, `failures`.

    Raises:
        UsageError: the link or an option is not one.
    """
    given = options.get("compute")
    compute = _median(cell.compute_seconds for cell in cells) if given is None else float(given)
    if math.isnan(compute):
        return list(cells)
    timed: list[Cell] = []
    for group in grouped(cells).values():
        others = {name: options.get(name) for name in ("stragglers", "failures")}
        own = known_or(_median(cell.round_seconds for cell in group), 0.0)
        for cell in group:
            timed.append(_with_seconds(cell, _priced(cell, link, compute, own, others)))
    return timed


def _priced(cell: Cell, link: str, compute: float, own: float, others: Mapping[str, Any]) -> list[float]:
    """Return the seconds of the points; NaN where stragglers or failures do not go with the cell."""
    link_of = links.parse(link)
    try:
        clock = VirtualClock(link_of, cell.group.workers, compute, own, seed=cell.seed, **others)
        return virtual_seconds(cell, clock)
    except UsageError:  # more stragglers than workers, or failures that never let it come to an end
        return [math.nan] * len(cell.points)


def virtual_seconds(cell: Cell, clock: VirtualClock) -> list[float]:
    """Return the seconds of the cell's points by the virtual clock."""
    if not cell.points:
        return []
    seconds = clock.seconds(cell.rounds(), cell.points[-1].step, cell.probe_seconds)
    return [float(seconds[point.step]) for point in cell.points]


def _with_seconds(cell: Cell, seconds: Sequence[float]) -> Cell:
    points = [point._replace(seconds=second) for point, second in zip(cell.points, seconds, strict=True)]
    return dataclasses.replace(cell, points=tuple(points))


def clock_seconds(
    cells: Sequence[Cell], alone: Sequence[Cell], twins: Sequence[Cell]
) -> list[tuple[float, float]]:
    """Return for each seed the seconds of real processes and those of the virtual clock on the same link.

    Both at the last point that all seeds have; nothing where there is none. A step takes what it took the
    processes without communication; a round's own work is what it took in simulation.

    Args:
        cells: of one method at one n, on one link, over seeds.
        alone: the cells of the same condition whose workers never communicate.
        twins: simulated cells of the same method and n; there may be none.
    """
    compute = float(np.mean([cell.points[-1].seconds / cell.points[-1].step for cell in alone]))
    own = known_or(_median(cell.round_seconds for cell in twins), 0.0)
    found: list[tuple[float, float]] = []
    for step in [step for step in common_steps(cells) if step > 0][-1:]:
        for cell in cells:
            clock = VirtualClock(links.parse(cell.link or ""), cell.group.workers, compute, own, seed=cell.seed)
            at = [point.step for point in cell.points].index(step)
            found.append((cell.points[at].seconds, virtual_seconds(cell, clock)[at]))
    return found


def common_steps(cells: Sequence[Cell]) -> list[int]:
    """Return the steps at which all cells have a point, in order."""
    return sorted(set[int].intersection(*({point.step for point in cell.points} for cell in cells)))


def first_reaching(cell: Cell, target: Mapping[str, float]) -> Point | None:
    """Return the first point on the right side of the target, None if there is none.

    Nothing is interpolated: how far apart the points are is how exactly the cost of a target is known.

    Args:
        cell: a run.
        target: {"accuracy": at least} or {"loss": at most}, on the test set.
    """
    for point in cell.points:
        if point.test_accuracy >= target.get("accuracy", math.inf):
            return point
        if point.test_loss <= target.get("loss", -math.inf):
            return point
    return None


def known_or(value: float, default: float) -> float:
    """Return `value`, or `default` where it is NaN."""
    return default if math.isnan(value) else value


def _median(values: Iterable[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return float(np.median(known)) if known else math.nan
