"""Makes the cell of a run from its events and summary."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from swarmstep.compare.plan import Task
from swarmstep.compare.results import Cell, Point
from swarmstep.train.pace import has_virtual_time
from swarmstep.train.run_folder import environment


def finished(task: Task, events: Sequence[Mapping[str, Any]], summary: Mapping[str, Any], seconds: float) -> Cell:
    """Return the cell of a run that finished.

    Args:
        task: what was run.
        events: as passed to Job.listen, or as in metrics.jsonl.
        summary: of the run.
        seconds: wall time of the whole run.
    """
    timed = task.config.backend != "sim" or has_virtual_time(task.config)
    metric = summary["metric"] or ""
    steps, rounds = max(1, summary["steps_taken"]), max(1, summary["rounds"])
    return Cell(
        purpose=task.purpose,
        method=task.method,
        config=dataclasses.asdict(task.config),
        link=task.link,
        points=_points(events, timed, metric),
        trace=[event["folded"] for event in events if event["kind"] == "trace"][-1],
        trust=_trust(events),
        by_worker=summary.get("by_worker", ()),
        parameters=summary["parameters"],
        compute_seconds=summary["compute_seconds"] / steps,
        # With a delay, real processes run the probes in the background: they cost the training no time.
        round_seconds=max(0.0, summary["sync_seconds"] - summary["probe_seconds"]) / rounds,
        probe_seconds=summary["probe_seconds"],
        seconds=seconds,
        metric=metric,
        environment={**_environment(), **({"corpus": summary["corpus"]} if summary["corpus"] else {})},
    )


def failed(task: Task, reason: str) -> Cell:
    """Return the cell of a run that failed."""
    return Cell(
        task.purpose,
        task.method,
        dataclasses.asdict(task.config),
        task.link,
        failed=reason.removeprefix("swarmstep: "),
        environment=_environment(),
    )


def is_finite(cell: Cell) -> bool:
    """Return whether a run has a result, and its test loss is finite."""
    return not cell.failed and math.isfinite(cell.points[-1].test_loss)


def _points(events: Sequence[Mapping[str, Any]], timed: bool, metric: str) -> tuple[Point, ...]:
    """Return one point a step; the first if a step was evaluated twice (before the last round and after it)."""
    points: dict[int, Point] = {}
    for event in events:
        if event["kind"] == "evaluation":
            names = [f"{part}_{what}" for part in ("validation", "test") for what in ("loss", "accuracy")]
            names += [f"{part}_{metric}" for part in ("validation", "test") if metric]
            scores = (math.nan if event[name] is None else event[name] for name in names)
            seconds = event["seconds"] if timed else math.nan
            point = Point(event["step"], seconds, event["bytes_sent"], *scores)
            points.setdefault(point.step, point)
    return tuple(points.values())


def _trust(events: Sequence[Mapping[str, Any]]) -> list[tuple[int, tuple[int, ...]]]:
    """Return (step, distrusted ranks) for each round in which they changed."""
    changes: list[tuple[int, tuple[int, ...]]] = []
    for event in events:
        if event["kind"] == "round":
            ranks = tuple(worker["rank"] for worker in event["distrusted"])
            if ranks != (changes[-1][1] if changes else ()):
                changes.append((event["landed"], ranks))
    return changes


def _environment() -> dict[str, Any]:
    return {name: value for name, value in environment().items() if name != "command"}
