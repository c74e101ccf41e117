"""What an analysis returns and a report shows: one section for each condition, with rows, curves and costs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from swarmstep.compare.statistics import Estimate
from swarmstep.train.work_done import WorkDone


class ToTarget(NamedTuple):
    """What it cost to reach the target, over the `reached` of `count` seeds that did; failed runs count as seeds.

    The target is reached at the first evaluation that meets it, so costs are known to one evaluation interval:
    `interval` steps, NaN if no run finished.
    """

    reached: int
    count: int  # pyright: ignore[reportIncompatibleMethodOverride]  # tuple.count, which nobody calls
    steps: Estimate
    bytes: Estimate
    seconds: Estimate
    interval: float = math.nan


class Edge(NamedTuple):
    """The best learning rate is the first or last of all that tuning tried: a better one may lie beyond.

    `direction`: "upwards" or "downwards", in which to extend the grid.
    """

    rate: float
    rates: tuple[float, ...]
    direction: str


@dataclass(frozen=True)
class MethodRow:
    """One method at one n.

    Args:
        method: as given to --strategies.
        every: n.
        chosen: the settings that tuning chose, as text: name -> value; learning rate and outer settings.
        tried: how many settings tuning compared.
        seeds: of the finished runs.
        failed: the reason of each failed run.
        accuracy, loss: on the test set, at the end; the section says which score stands as the accuracy.
        bytes, seconds: of the whole run.
        to_target: None without a target.
        rank: 1 for the best; None if the row is not ranked (fewer than 3 seeds, for example).
        verdict: "best", "not distinguishable from the best", "behind by 0.012 ± 0.004" or "not ranked: 1 seed";
            followed by "; 1 of 3 runs failed" if runs failed.
        stops: whether the runs stop when they reach a target, so that their values at the end mean nothing else.
        edge: where the best rate lies at the edge of its grid; None where not, or where nothing was tuned.
        seeds_needed: to tell a difference of interest from the best: the difference ("0.5 points of accuracy")
            -> how many.
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
    edge: Edge | None = None
    seeds_needed: Mapping[str, int] = field(default_factory=dict[str, int])


class CurvePoint(NamedTuple):
    """Test accuracy and loss after `step` steps; bytes and seconds are means over the seeds."""

    step: int
    bytes: float
    seconds: float
    accuracy: Estimate
    loss: Estimate


@dataclass(frozen=True)
class Curve:
    """One method at one n over the course of training."""

    method: str
    every: int
    points: tuple[CurvePoint, ...]


@dataclass(frozen=True)
class Distrusted:
    """Which ranks a run distrusted, as (first step, ranks) for each change; `steps` is the length of the run."""

    method: str
    every: int
    seed: int
    changes: tuple[tuple[int, tuple[int, ...]], ...]
    steps: int


@dataclass(frozen=True)
class Worked:
    """What each worker did, in rank order: means over the seeds."""

    method: str
    every: int
    workers: tuple[WorkDone, ...]


class ClockError(NamedTuple):
    """Seconds of real processes and of the virtual clock, means over the seeds, and the relative error.

    The error is that of the seed where it is largest; 0.1 means that the virtual clock says 10 % too much.
    """

    method: str
    every: int
    real: float
    virtual: float
    error: float


@dataclass(frozen=True)
class Section:
    """Everything that was compared under one condition.

    Args:
        title: such as "mnist lenet5, 4 workers, bad-labels:1".
        condition: what all rows have in common: name -> value.
        link: whose seconds are shown: of the real network or of the virtual clock; "" for none.
        real: whether the seconds were measured in real processes.
        target: such as "test accuracy 0.95"; "" for none.
        rows: the best first; rows that are not ranked at the end.
        curves, trust, work, clock_errors: for the figures of the page; `work` of runs with unequal workers.
        by_n: method -> [(n, accuracy at the end), ...].
        command: what made the results.
        environment: name -> value.
        cells: number of runs, including tuning and failed ones.
        tuned_on: what trials of tuning were judged by, and why; "" if it is not known or nothing was tuned.
        score: what stands as the accuracy everywhere: "accuracy", or the workload's own metric, "auc" say.
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
    tuned_on: str = ""
    work: tuple[Worked, ...] = ()
    score: str = "accuracy"
