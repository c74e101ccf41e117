"""From the cells of comparisons to sections: estimates over seeds, costs to the target, and ranks."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from swarmstep.compare import labels
from swarmstep.compare.costs import clock_seconds, common_steps, first_reaching, known_or, with_virtual_seconds
from swarmstep.compare.ranking import BEST, Entry, seeds_needed, standings
from swarmstep.compare.results import Cell, Point, Results, check_corpora
from swarmstep.compare.sections import (
    ClockError,
    Curve,
    CurvePoint,
    Distrusted,
    Edge,
    MethodRow,
    Section,
    ToTarget,
    Worked,
)
from swarmstep.compare.series import Series, distinct, series_of
from swarmstep.compare.statistics import Estimate, Range, estimate
from swarmstep.train.config import DDP
from swarmstep.train.work_done import WorkDone, mean_of, unequal

ALL_FAILED = "all runs failed"
POINTS, PART = 0.005, 0.02  # differences of interest: of an accuracy, and the part of any other quantity
RANGES: Mapping[str, Range] = {"test_accuracy": "share"}  # of the fields of a Point; all others are positive


def analyse(results: Sequence[Results]) -> list[Section]:
    """Return a section for each condition and each link of the virtual clock, in the order of the results.

    A cell that several results contain counts once. Results with different targets or different options of the
    virtual clock answer different questions and get sections of their own. Methods are ranked by the seconds to
    the target (by the steps if there are no seconds); without a target by the workload's metric or the test
    accuracy at the end (by the loss if there is neither). Only rows that reached the target with every seed are
    ranked by it; a failed run did not. Since a target is noticed at an evaluation, rows closer than two
    evaluations are not distinguished.

    Raises:
        UsageError: a link or an option of the virtual clock is invalid, or SciPy is not installed.
        DataError: runs of one workload were made on different texts.
    """
    check_corpora(cell for source in results for cell in source.cells)
    questions: dict[str, list[Results]] = {}
    for source in results:
        options = {name: value for name, value in (source.about.get("clock") or {}).items() if value is not None}
        question = json.dumps([source.about.get("target") or {}, options], sort_keys=True)
        questions.setdefault(question, []).append(source)
    return [section for sources in questions.values() for section in _sections(sources)]


def _sections(sources: Sequence[Results]) -> Iterator[Section]:
    cells = distinct(sources)
    links = list(dict.fromkeys(link for source in sources for link in source.about.get("links") or ()))
    for condition in dict.fromkeys(cell.group.condition for cell in cells if cell.purpose == "run"):
        related = [cell for cell in cells if cell.group.condition[:5] == condition[:5]]
        runs = [cell for cell in related if cell.purpose == "run" and cell.group.condition == condition]
        for link in [condition[-1]] if runs[0].real else links or [""]:
            yield _section(runs, related, sources, link)


def _section(runs: Sequence[Cell], related: Sequence[Cell], sources: Sequence[Results], link: str) -> Section:
    """Return the section of one condition; `related` also has its tuning runs and simulated counterparts."""
    real, about = runs[0].real, sources[0].about
    target = about.get("target") or {}
    tuning = [cell for cell in related if cell.purpose == "tune"]
    runs = [_judged(cell) for cell in runs]
    timed = runs if real or not link else with_virtual_seconds(runs, link, about.get("clock") or {})
    series = series_of(timed, tuning)
    has_accuracy = any(math.isfinite(_at_end(one, "test_accuracy").mean) for one in series)
    rows = _ranked(series, target, has_accuracy)
    return Section(
        title=labels.title(runs[0]),
        condition=labels.condition(runs),
        link=link,
        real=real,
        target=labels.target(target),
        rows=tuple(rows),
        curves=tuple(_curve(one) for one in series if one.cells),
        by_n=_by_n(rows),
        trust=tuple(_distrusted(one, cell) for one in series for cell in one.cells if _judges_workers(cell)),
        work=tuple(work for one in series if (work := _worked(one))),
        clock_errors=tuple(_clock_errors(series, related) if real and link else ()),
        command=labels.commands(sources),
        environment=labels.environment(runs),
        cells=len(runs) + len(tuning),
        score=_score_of(series),
        tuned_on=labels.tuned_on(sources, runs[0]) if any(len(one.rates) > 1 for one in series) else "",
    )


def _judged(cell: Cell) -> Cell:
    """Return a cell whose metric, if it has one, stands in the place of the accuracy."""
    if not cell.metric:
        return cell
    return dataclasses.replace(
        cell, points=tuple(point._replace(test_accuracy=point.test_metric) for point in cell.points)
    )


def _ranked(series: Sequence[Series], target: Mapping[str, float], has_accuracy: bool) -> list[MethodRow]:
    """Return the rows, the best first; then those that are not ranked, at last those whose runs all failed."""
    entries, unit = _by_target(series, target) if target else _by_quality(series, has_accuracy)
    standing = standings(entries, unit)
    best = next((i for i, (_, verdict) in enumerate(standing) if verdict == BEST), None)
    needed = _seeds_needed(series, target, has_accuracy, best)
    keyed: list[tuple[tuple[Any, ...], MethodRow]] = []
    for one, entry, (rank, verdict), seeds in zip(series, entries, standing, needed, strict=True):
        if one.failed and one.cells:
            verdict = f"{verdict}; {len(one.failed)} of {one.count} runs failed"
        row = dataclasses.replace(_row(one, target, rank, verdict), seeds_needed=seeds)
        key = (
            math.inf if rank is None else rank,
            not one.cells,
            known_or(estimate(list(entry.scores.values())).mean, math.inf),
            not verdict.startswith(BEST),
            -row.to_target.reached / row.to_target.count if row.to_target else 0.0,
            known_or(-row.accuracy.mean if has_accuracy else row.loss.mean, math.inf),
            one.method,
            one.every,
        )
        keyed.append((key, row))
    return [row for _, row in sorted(keyed, key=lambda item: item[0])]


def _seeds_needed(
    series: Sequence[Series], target: Mapping[str, float], has_accuracy: bool, best: int | None
) -> list[dict[str, int]]:
    """Return for each series the seeds that tell differences of interest from the best: difference -> seeds.

    The differences are of the target's own metric at the end of the runs, unless they stop at the target, and of
    what it took to reach it.
    """
    needed: list[dict[str, int]] = [{} for _ in series]
    if best is None:
        return needed
    by_accuracy = has_accuracy and "loss" not in target
    asked: dict[str, tuple[list[Entry], float | None]] = {}
    if not any(_stops(one) for one in series):
        name = (
            f"{100 * POINTS:g} points of {_score_of(series)}" if by_accuracy else f"{100 * PART:g} % of the loss"
        )
        asked[name] = _by_quality(series, by_accuracy)[0], POINTS if by_accuracy else None
    if target:
        entries, unit = _by_target(series, target)
        asked[f"{100 * PART:g} % of the {'time' if unit == 's' else 'steps'} to the target"] = entries, None
    for name, (entries, fixed) in asked.items():
        counts = seeds_needed(entries, best, lambda mean, fixed=fixed: PART * mean if fixed is None else fixed)
        for i, count in enumerate(counts):
            if count is not None:
                needed[i][name] = count
    return needed


def _score_of(series: Sequence[Series]) -> str:
    return next((cell.metric for one in series for cell in one.cells if cell.metric), "accuracy")


def _by_quality(series: Sequence[Series], has_accuracy: bool) -> tuple[list[Entry], str]:
    """Return the entries to rank by the accuracy at the end, or else by the loss, and the unit."""
    entries: list[Entry] = []
    for one in series:
        ends = {cell.seed: cell.points[-1] for cell in one.cells}
        scores = {seed: -end.test_accuracy if has_accuracy else end.test_loss for seed, end in ends.items()}
        entries.append(Entry(scores, "" if scores else ALL_FAILED))
    return entries, "" if has_accuracy else "in loss"


def _by_target(series: Sequence[Series], target: Mapping[str, float]) -> tuple[list[Entry], str]:
    """Return the entries to rank by seconds to the target if all are known, else by steps, and the unit."""
    firsts = [{cell.seed: first_reaching(cell, target) for cell in one.cells} for one in series]
    points = [{seed: point for seed, point in reached.items() if point} for reached in firsts]
    timed = all(math.isfinite(point.seconds) for reached in points for point in reached.values())
    entries: list[Entry] = []
    for one, reached in zip(series, points, strict=True):
        missed = f"{len(reached)} of {one.count} seeds reached the target" if len(reached) < one.count else ""
        scores = {seed: point.seconds if timed else point.step for seed, point in reached.items()}
        interval = max((_evaluation_interval(cell, in_seconds=timed) for cell in one.cells), default=0.0)
        entries.append(Entry({} if missed else scores, missed if one.cells else ALL_FAILED, interval))
    return entries, "s" if timed else "steps"


def _evaluation_interval(cell: Cell, *, in_seconds: bool) -> float:
    """Return the distance between two evaluations: the target was reached somewhere in between."""
    steps = [point.step for point in cell.points]
    interval = float(np.median(np.diff(steps))) if len(steps) > 1 else 0.0
    return interval * cell.points[-1].seconds / steps[-1] if in_seconds else interval


def _row(one: Series, target: Mapping[str, float], rank: int | None, verdict: str) -> MethodRow:
    return MethodRow(
        method=one.method,
        every=one.every,
        chosen=one.chosen,
        tried=one.tried,
        seeds=tuple(cell.seed for cell in one.cells),
        failed=tuple(str(cell.failed) for cell in one.failed),
        accuracy=_at_end(one, "test_accuracy"),
        loss=_at_end(one, "test_loss"),
        bytes=_at_end(one, "bytes"),
        seconds=_at_end(one, "seconds"),
        to_target=_to_target(one, target) if target else None,
        rank=rank,
        verdict=verdict,
        stops=_stops(one),
        edge=_edge(one),
    )


def _stops(one: Series) -> bool:
    return any(cell.config.get("until_accuracy") is not None for cell in one.cells)


def _edge(one: Series) -> Edge | None:
    rate = float((*one.cells, *one.failed)[0].config["lr"])
    if len(one.rates) < 2 or one.rates[0] < rate < one.rates[-1]:
        return None
    return Edge(rate, one.rates, "upwards" if rate >= one.rates[-1] else "downwards")


def _to_target(one: Series, target: Mapping[str, float]) -> ToTarget:
    reached = [point for cell in one.cells if (point := first_reaching(cell, target))]
    costs = (_over(reached, name) for name in ("step", "bytes", "seconds"))
    interval = max((_evaluation_interval(cell, in_seconds=False) for cell in one.cells), default=math.nan)
    return ToTarget(len(reached), one.count, *costs, interval=interval)


def _over(points: Sequence[Point], name: str) -> Estimate:
    return estimate([getattr(point, name) for point in points], RANGES.get(name, "positive"))


def _at_end(one: Series, name: str) -> Estimate:
    return _over([cell.points[-1] for cell in one.cells], name)


def _curve(one: Series) -> Curve:
    """Return the curve of a series, at the steps that all its seeds have."""
    by_step = [{point.step: point for point in cell.points} for cell in one.cells]
    curve: list[CurvePoint] = []
    for step in common_steps(one.cells):
        points = [points[step] for points in by_step]
        sent, seconds = _over(points, "bytes").mean, _over(points, "seconds").mean
        curve.append(CurvePoint(step, sent, seconds, _over(points, "test_accuracy"), _over(points, "test_loss")))
    return Curve(one.method, one.every, tuple(curve))


def _by_n(rows: Sequence[MethodRow]) -> dict[str, tuple[tuple[int, Estimate], ...]]:
    by_n: dict[str, list[tuple[int, Estimate]]] = {}
    for row in sorted(rows, key=lambda row: (row.method, row.every)):
        if row.seeds and not row.stops:
            by_n.setdefault(row.method, []).append((row.every, row.accuracy))
    return {method: tuple(points) for method, points in by_n.items()}


def _judges_workers(cell: Cell) -> bool:
    return cell.method.startswith("swarm") or any(ranks for _, ranks in cell.trust)


def _distrusted(one: Series, cell: Cell) -> Distrusted:
    changes = tuple((step, tuple(ranks)) for step, ranks in cell.trust)
    return Distrusted(one.method, one.every, cell.seed, changes, cell.points[-1].step)


def _worked(one: Series) -> Worked | None:
    runs = [[WorkDone(**row) for row in cell.by_worker] for cell in one.cells if cell.by_worker]
    if not any(map(unequal, runs)):
        return None
    return Worked(one.method, one.every, tuple(map(mean_of, zip(*runs, strict=True))))


def _clock_errors(series: Sequence[Series], related: Sequence[Cell]) -> Iterator[ClockError]:
    independent = [cell for one in series for cell in one.cells if cell.method == "independent"]
    for one in series:
        if not independent or not one.cells or one.cells[0].method in ("independent", DDP):
            continue
        group = one.cells[0].group._replace(backend="sim", link="")
        simulated = [cell for cell in related if cell.purpose == "run" and cell.group == group and not cell.failed]
        if pairs := clock_seconds(one.cells, independent, simulated):
            real, virtual = np.transpose(pairs)
            errors = virtual / real - 1
            error = float(errors[np.abs(errors).argmax()])
            yield ClockError(one.method, one.every, float(real.mean()), float(virtual.mean()), error)
