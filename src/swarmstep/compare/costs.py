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


def with_virtual_seconds(cells: Sequence[Cell], link: str, options: Mapping[str, Any]) -> list[Cell]:
    """Return simulated cells with the seconds of the virtual clock in their points; failed ones as they are.

    A step takes the same time for all methods: the median over the cells, so that noise of the machine favours
    none. A round takes the median over the seeds of its method and n.

    Args:
        cells: of one condition.
        link: of every worker, such as "100mbit,5ms".
        options: `compute` (seconds of a step, None for what was measured), `stragglers`, `failures`.

    Raises:
        UsageError: the link or an option is invalid.
    """
    given = options.get("compute")
    compute = _median(cell.compute_seconds for cell in cells) if given is None else float(given)
    if math.isnan(compute):
        return list(cells)
    others = {name: options.get(name) for name in ("stragglers", "failures")}
    timed: list[Cell] = []
    for group in grouped(cells).values():
        round_compute = known_or(_median(cell.round_seconds for cell in group), 0.0)
        for cell in group:
            timed.append(_with_seconds(cell, _seconds(cell, link, compute, round_compute, others)))
    return timed


def _seconds(
    cell: Cell, link: str, compute: float, round_compute: float, options: Mapping[str, Any]
) -> list[float]:
    """Return the seconds of the points; NaN if the stragglers or failures cannot be applied to the cell."""
    parsed = links.parse(link)
    try:
        clock = VirtualClock(parsed, cell.group.workers, compute, round_compute, seed=cell.seed, **options)
        return virtual_seconds(cell, clock)
    except UsageError:  # more stragglers than workers, or failures so frequent that the run would never end
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
    cells: Sequence[Cell], independent: Sequence[Cell], simulated: Sequence[Cell]
) -> list[tuple[float, float]]:
    """Return for each seed the seconds of real processes and those of the virtual clock on the same link.

    Both are taken at the last point that all seeds have; the list is empty if there is none. The clock assumes
    that a step takes as long as in the processes without communication, and a round's own work as in simulation.

    Args:
        cells: of one method at one n on one link, over seeds.
        independent: cells of the same condition whose workers never communicate.
        simulated: cells of the same method and n; may be empty.
    """
    compute = float(np.mean([cell.points[-1].seconds / cell.points[-1].step for cell in independent]))
    round_compute = known_or(_median(cell.round_seconds for cell in simulated), 0.0)
    steps = [step for step in common_steps(cells) if step > 0]
    if not steps:
        return []
    pairs: list[tuple[float, float]] = []
    for cell in cells:
        link = links.parse(cell.link or "")
        clock = VirtualClock(link, cell.group.workers, compute, round_compute, seed=cell.seed)
        index = [point.step for point in cell.points].index(steps[-1])
        pairs.append((cell.points[index].seconds, virtual_seconds(cell, clock)[index]))
    return pairs


def common_steps(cells: Sequence[Cell]) -> list[int]:
    """Return the steps at which all cells have a point, in order."""
    return sorted(set[int].intersection(*({point.step for point in cell.points} for cell in cells)))


def first_reaching(cell: Cell, target: Mapping[str, float]) -> Point | None:
    """Return the first point that meets the target, or None.

    Nothing is interpolated: the cost of a target is known to one evaluation interval.

    Args:
        cell: a run.
        target: {"accuracy": at least}, {"loss": at most} or {metric: at least}, on the test set.
    """
    for point in cell.points:
        if point.test_accuracy >= target.get("accuracy", math.inf):
            return point
        if point.test_loss <= target.get("loss", -math.inf):
            return point
        if cell.metric and point.test_metric >= target.get(cell.metric, math.inf):
            return point
    return None


def known_or(value: float, default: float) -> float:
    """Return `value`, or `default` if it is NaN."""
    return default if math.isnan(value) else value


def _median(values: Iterable[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return float(np.median(known)) if known else math.nan
