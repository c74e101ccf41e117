"""What the cells of comparisons say: estimates over seeds, costs to the target, and who is ahead."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from swarmstep.compare import labels
from swarmstep.compare.costs import clock_seconds, clocked, common_steps, first_reaching, known_or
from swarmstep.compare.ranking import BEST, Entry, standings
from swarmstep.compare.results import Cell, Point, Results
from swarmstep.compare.series import Series, distinct, series_of
from swarmstep.compare.statistics import Estimate, estimate
from swarmstep.train.config import DDP


class ToTarget(NamedTuple):
    """What reaching the target cost, over the seeds that reached it: `reached` of `count`, failed ones included.

    The target is reached at the first evaluation that says so: how far these are apart is how exactly it is known.
    """

    reached: int
    count: int  # pyright: ignore[reportIncompatibleMethodOverride]  # tuple.count, which nobody calls
    steps: Estimate
    bytes: Estimate
    seconds: Estimate


@dataclass(frozen=True)
class MethodRow:
    """One method at one n.

    Args:
        method: as given to --strategies.
        every: n.
        chosen: what tuning chose, by name: lr and settings, as text.
        tried: how many settings tuning has compared.
        seeds: of the runs.
        failed: for each failed cell, why.
        accuracy, loss: on the test set, at the end.
        bytes, seconds: for the whole run.
        to_target: where there is a target.
        rank: 1 for the best; None where nothing is ranked (fewer than 3 seeds).
        stops: whether the runs end where they reach a target, so that their end says nothing else.
        verdict: in words: "best", "not distinguishable from the best", "behind by 0.012 ± 0.004",
            "not ranked: 1 seed"; where some runs failed, with "; 1 of 3 runs failed".
    """

    method: str
    every: int
    chosen: Mapping[str, str]
    tried: int
    seeds: tuple[int, ...]
    failed: tuple[str, ...]
    accuracy: Estimate
    loss: Estimate
    bytes: Estimate
    seconds: Estimate
    to_target: ToTarget | None
    rank: int | None
    verdict: str
    stops: bool = False


class CurvePoint(NamedTuple):
    """The test accuracy and loss after `step` steps; bytes and seconds are means over the seeds."""

    step: int
    bytes: float
    seconds: float
    accuracy: Estimate
    loss: Estimate


@dataclass(frozen=True)
class Curve:
    """How one method at one n went."""

    method: str
    every: int
    points: tuple[CurvePoint, ...]


@dataclass(frozen=True)
class Distrusted:
    """For one run: how many ranks were distrusted from which step on, [(step, ranks), ...]."""

    method: str
    every: int
    seed: int
    changes: tuple[tuple[int, tuple[int, ...]], ...]
    steps: int


class ClockError(NamedTuple):
    """Where real processes ran: their seconds and those of the virtual clock, means over the seeds, and the error.

    That is of the seed where it is largest; 0.1: the clock says 10 % too much.
    """

    method: str
    every: int
    real: float
    virtual: float
    error: float


@dataclass(frozen=True)
class Section:
    """All that was compared under one condition.

    Args:
        title: such as "mnist lenet5, 4 workers, bad-labels:1".
        condition: name -> value of what all rows have in common.
        link: that the seconds are about: of the real network, or that of the virtual clock; "" for none.
        real: whether the seconds were measured in real processes.
        target: in words, such as "test accuracy 0.95"; "" for none.
        rows: best first; those that are not ranked at the end.
        curves, by_n, trust, clock_errors: what the page draws. `by_n` maps a method to [(n, final accuracy)].
        command: what made it.
        environment: name -> value.
        cells: how many runs, tuning and failed ones included.
    """

    title: str
    condition: Mapping[str, str]
    link: str
    real: bool
    target: str
    rows: tuple[MethodRow, ...]
    curves: tuple[Curve, ...]
    by_n: Mapping[str, tuple[tuple[int, Estimate], ...]]
    trust: tuple[Distrusted, ...]
    clock_errors: tuple[ClockError, ...]
    command: str
    environment: Mapping[str, str]
    cells: int


def analyse(results: Sequence[Results]) -> list[Section]:
    """Return a section for each condition (and each link that was asked about), in the order of the results.

    A cell in several results counts once. Results with different targets or options of the virtual clock ask
    different questions, and have sections of their own. Methods are ranked by the seconds to the target (by the
    steps where there are no seconds), without one by the test accuracy at the end (by the loss where there is
    none). Only rows that reached the target with all their seeds are ranked by it; a failed run has not.
    A target is known to an evaluation only: rows closer than two evaluations are not told apart.

    Raises:
        UsageError: a link or an option of the virtual clock is not one.
    """
    asked: dict[str, list[Results]] = {}
    for source in results:
        options = {name: value for name, value in (source.about.get("clock") or {}).items() if value is not None}
        question = json.dumps([source.about.get("target") or {}, options], sort_keys=True)
        asked.setdefault(question, []).append(source)
    return [section for sources in asked.values() for section in _sections(sources)]


def _sections(sources: Sequence[Results]) -> Iterator[Section]:
    cells = distinct(sources)
    links = list(dict.fromkeys(link for source in sources for link in source.about.get("links") or ()))
    for condition in dict.fromkeys(cell.group.condition for cell in cells if cell.purpose == "run"):
        related = [cell for cell in cells if cell.group.condition[:5] == condition[:5]]
        runs = [cell for cell in related if cell.purpose == "run" and cell.group.condition == condition]
        for link in [condition[-1]] if runs[0].real else links or [""]:
            yield _section(runs, related, sources, link)


def _section(runs: Sequence[Cell], related: Sequence[Cell], sources: Sequence[Results], link: str) -> Section:
    """Return the section of one condition; `related` are its cells, those of tuning and simulated twins."""
    real, about = runs[0].real, sources[0].about
    target = about.get("target") or {}
    tunes = [cell for cell in related if cell.purpose == "tune"]
    timed = runs if real or not link else clocked(runs, link, about.get("clock") or {})
    series = series_of(timed, tunes)
    accurate = any(math.isfinite(_at_end(one, "test_accuracy").mean) for one in series)
    rows = _ranked(series, target, accurate)
    return Section(
        title=labels.title(runs[0]),
        condition=labels.condition(runs),
        link=link,
        real=real,
        target=labels.target(target),
        rows=tuple(rows),
        curves=tuple(_curve(one) for one in series if one.cells),
        by_n=_by_n(rows),
        trust=tuple(_distrusted(one, cell) for one in series for cell in one.cells if _speaks_of_trust(cell)),
        clock_errors=tuple(_clock_errors(series, related) if real and link else ()),
        command=labels.commands(sources),
        environment=labels.environment(runs),
        cells=len(runs) + len(tunes),
    )


def _ranked(series: Sequence[Series], target: Mapping[str, float], accurate: bool) -> list[MethodRow]:
    """Return the rows, best first; those that are not ranked after them, and those that all failed last."""
    entries, unit = _by_target(series, target) if target else _by_quality(series, accurate)
    found: list[tuple[tuple[Any, ...], MethodRow]] = []
    for one, entry, (rank, verdict) in zip(series, entries, standings(entries, unit), strict=True):
        if one.failed and one.cells:
            verdict = f"{verdict}; {len(one.failed)} of {one.count} runs failed"
        row = _row(one, target, rank, verdict)
        place = (
            math.inf if rank is None else rank,
            not one.cells,
            known_or(estimate(list(entry.scores.values())).mean, math.inf),
            not verdict.startswith(BEST),
            -row.to_target.reached / row.to_target.count if row.to_target else 0.0,
            known_or(-row.accuracy.mean if accurate else row.loss.mean, math.inf),
            one.method,
            one.every,
        )
        found.append((place, row))
    return [row for _, row in sorted(found, key=lambda item: item[0])]


def _by_quality(series: Sequence[Series], accurate: bool) -> tuple[list[Entry], str]:
    """Return the entries, by the accuracy or else by the loss at the end, and the unit."""
    entries: list[Entry] = []
    for one in series:
        ends = {cell.seed: cell.points[-1] for cell in one.cells}
        scores = {seed: -end.test_accuracy if accurate else end.test_loss for seed, end in ends.items()}
        entries.append(Entry(scores, "" if scores else "all runs failed"))
    return entries, "" if accurate else "in loss"


def _by_target(series: Sequence[Series], target: Mapping[str, float]) -> tuple[list[Entry], str]:
    """Return the entries, seconds where all of them are known, else steps, and the unit."""
    firsts = [{cell.seed: first_reaching(cell, target) for cell in one.cells} for one in series]
    points = [{seed: point for seed, point in reached.items() if point} for reached in firsts]
    known = all(math.isfinite(point.seconds) for reached in points for point in reached.values())
    entries: list[Entry] = []
    for one, reached in zip(series, points, strict=True):
        missed = f"{len(reached)} of {one.count} seeds reached the target" if len(reached) < one.count else ""
        scores = {seed: point.seconds if known else point.step for seed, point in reached.items()}
        spacing = max((_spacing(cell, in_seconds=known) for cell in one.cells), default=0.0)
        entries.append(Entry({} if missed else scores, missed if one.cells else "all runs failed", spacing))
    return entries, "s" if known else "steps"


def _spacing(cell: Cell, *, in_seconds: bool) -> float:
    """Return how far apart two evaluations are: a target is reached somewhere in between."""
    steps = [point.step for point in cell.points]
    apart = float(np.median(np.diff(steps))) if len(steps) > 1 else 0.0
    return apart * cell.points[-1].seconds / steps[-1] if in_seconds else apart


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
        stops=any(cell.config.get("until_accuracy") is not None for cell in one.cells),
    )


def _to_target(one: Series, target: Mapping[str, float]) -> ToTarget:
    reached = [point for cell in one.cells if (point := first_reaching(cell, target))]
    costs = (_over(reached, name) for name in ("step", "bytes", "seconds"))
    return ToTarget(len(reached), one.count, *costs)


def _over(points: Sequence[Point], name: str) -> Estimate:
    return estimate([getattr(point, name) for point in points])


def _at_end(one: Series, name: str) -> Estimate:
    return _over([cell.points[-1] for cell in one.cells], name)


def _curve(one: Series) -> Curve:
    """Return how a series went, at the steps that all its seeds have."""
    by_step = [{point.step: point for point in cell.points} for cell in one.cells]
    found: list[CurvePoint] = []
    for step in common_steps(one.cells):
        points = [points[step] for points in by_step]
        sent, seconds = _over(points, "bytes").mean, _over(points, "seconds").mean
        found.append(CurvePoint(step, sent, seconds, _over(points, "test_accuracy"), _over(points, "test_loss")))
    return Curve(one.method, one.every, tuple(found))


def _by_n(rows: Sequence[MethodRow]) -> dict[str, tuple[tuple[int, Estimate], ...]]:
    found: dict[str, list[tuple[int, Estimate]]] = {}
    for row in sorted(
        (row for row in rows if row.seeds and not row.stops), key=lambda row: (row.method, row.every)
    ):
        found.setdefault(row.method, []).append((row.every, row.accuracy))
    return {method: tuple(points) for method, points in found.items()}


def _speaks_of_trust(cell: Cell) -> bool:
    return cell.method.startswith("swarm") or any(ranks for _, ranks in cell.trust)


def _distrusted(one: Series, cell: Cell) -> Distrusted:
    changes = tuple((step, tuple(ranks)) for step, ranks in cell.trust)
    return Distrusted(one.method, one.every, cell.seed, changes, cell.points[-1].step)


def _clock_errors(series: Sequence[Series], related: Sequence[Cell]) -> Iterator[ClockError]:
    cells = [cell for one in series for cell in one.cells]
    alone = [cell for cell in cells if cell.method == "independent"]
    for one in series:
        if not alone or not one.cells or one.cells[0].method in ("independent", DDP):
            continue
        group = one.cells[0].group._replace(backend="sim", link="")
        twins = [cell for cell in related if cell.purpose == "run" and cell.group == group and not cell.failed]
        if pairs := clock_seconds(one.cells, alone, twins):
            real, virtual = np.transpose(pairs)
            errors = virtual / real - 1
            error = float(errors[np.abs(errors).argmax()])
            yield ClockError(one.method, one.every, float(real.mean()), float(virtual.mean()), error)
