"""The grid of runs, and the tuning trials that choose their settings."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, Literal

from swarmstep.compare.methods import Method
from swarmstep.compare.results import Cell, key_of
from swarmstep.train.build import resolve
from swarmstep.train.config import BASELINES, DDP, GRADIENTS, LAYUP, SYNCHRONOUS, Config
from swarmstep.workloads import Workload

AT_EVERY_STEP = {*BASELINES, *GRADIENTS, LAYUP}  # run once, not for each n
Measure = Literal["accuracy", "loss", "metric"]  # on the validation split
TUNING_SEED = 1_000_000  # far from the seeds of the runs, so that none is tuned on its own seed


@dataclasses.dataclass(frozen=True)
class Task:
    """A cell to be run: its purpose ("run" or "tune") and its resolved config."""

    purpose: str
    method: str
    config: Config
    link: str | None

    @functools.cached_property
    def key(self) -> str:
        """The key of the cell that comes out of it."""
        return key_of(self.purpose, self.method, dataclasses.asdict(self.config), self.link)


@dataclasses.dataclass(frozen=True)
class Tuning:
    """The tuning budget, the same for every method.

    Args:
        rates: learning rates to try, ascending; with a single one nothing is tuned.
        extra: further trials: other settings of the method at the best rate, or rates next to the best.
        steps: of a trial.
        measure: what trials are judged by: that of the target.
    """

    rates: tuple[float, ...]
    extra: int
    steps: int
    measure: Measure


@dataclasses.dataclass(frozen=True)
class TaskGroup:
    """A method at one n under one condition: trials that choose its settings, then runs over seeds.

    Args:
        method: to run.
        fields: of the Config, common to trials and runs: workload, every, workers, shards, fault ...
        seeds: of the runs.
        tuning: the budget of the trials.
        link: of the real network; None on loopback or in simulation.
    """

    method: Method
    fields: Mapping[str, Any]
    seeds: tuple[int, ...]
    tuning: Tuning
    link: str | None

    def work(self, workload: Workload) -> Generator[list[Task], list[Cell], None]:
        """Yield lists of tasks that may run in parallel, and receive their cells; the runs come last."""
        rates = [(rate, {}) for rate in self.tuning.rates]
        chosen: tuple[float | None, Mapping[str, str]] = rates[0] if rates else (None, {})
        self._task("run", workload, *chosen)  # raises if its options are wrong, before anything has run
        if len(rates) > 1:
            scores = yield from self._try(rates, workload)
            more = self._more(scores)
            scores |= (yield from self._try(more, workload)) if more else {}
            rate, settings = min(scores, key=lambda trial: scores[trial])
            chosen = rate, dict(settings)
        yield [self._task("run", workload, *chosen, seed=seed) for seed in self.seeds]

    def _try(
        self, trials: Sequence[tuple[float, Mapping[str, str]]], workload: Workload
    ) -> Generator[list[Task], list[Cell], dict[Trial, Score]]:
        short = {"steps": self.tuning.steps, "eval_every": self.tuning.steps, "seed": TUNING_SEED}
        cells = yield [self._task("tune", workload, *trial, **short) for trial in trials]
        if any(cell.failed and "not finite" not in cell.failed for cell in cells):
            raise Untuned  # it would count as diverged; the next call tries it again
        names = [(rate, tuple(settings.items())) for rate, settings in trials]
        scores = (score(cell, self.tuning.measure) for cell in cells)
        return dict(zip(names, scores, strict=True))

    def _more(self, scores: Mapping[Trial, Score]) -> list[tuple[float, Mapping[str, str]]]:
        """Return further trials, based on the scores of the first ones."""
        (best, _) = min(scores, key=lambda trial: scores[trial])
        others = [(best, settings) for settings in self.method.alternatives()]
        tried = {rate: known for (rate, _), known in scores.items()}
        while len(others) < self.tuning.extra:
            best = min(tried, key=lambda rate: tried[rate])
            rate = next_rate(tried)
            tried[rate] = WORST  # not known yet; the next rate differs from it
            others.append((rate, {}))
        return others[: self.tuning.extra]

    def _task(
        self, purpose: str, workload: Workload, rate: float | None, settings: Mapping[str, str], **fields: Any
    ) -> Task:
        merged = {**self.fields, **({} if rate is None else {"lr": rate}), "settings": settings, **fields}
        if purpose == "tune":  # always simulated, and without stopping early
            merged |= {"backend": "sim", "fast_sums": False, "until_accuracy": None}
        method = self.method
        if purpose == "tune" and method.name == DDP:
            method = dataclasses.replace(method, name=SYNCHRONOUS)  # the same numbers
        return Task(
            purpose, self.method.spec, resolve(method.config(**merged), workload),
            self.link if purpose == "run" else None,
        )  # fmt: skip


class Untuned(Exception):
    """A trial failed for a reason unrelated to its settings: the group waits for the next call."""


Trial = tuple[float, tuple[tuple[str, str], ...]]  # a learning rate, and settings
Score = tuple[float, float]  # lower is better; the second counts if the first ones are equal
WORST: Score = (math.inf, math.inf)


def score(cell: Cell, measure: Measure) -> Score:
    """Return how good a trial is at its end, by the validation split; WORST if it failed or diverged.

    By accuracy, equal ones (small splits have few different ones) are told apart by their losses; so are trials
    whose metric has no value on the split, such as an AUC where there are no positives.
    """
    if cell.failed or not cell.points:
        return WORST
    end = cell.points[-1]
    loss, metric = end.validation_loss, end.validation_metric
    if measure == "metric":
        return (0.0 if math.isnan(metric) else -metric, loss) if math.isfinite(loss) else WORST
    first = -end.validation_accuracy if measure == "accuracy" else loss
    return (first, loss) if math.isfinite(loss) and math.isfinite(first) else WORST


def next_rate(scores: Mapping[float, Score]) -> float:
    """Return a rate to try: beyond the best one at an edge, else between it and its better neighbour."""
    rates = sorted(scores)
    best = rates.index(min(rates, key=lambda rate: scores[rate]))
    if best == 0:
        return _rounded(rates[0] * rates[0] / rates[1])
    if best == len(rates) - 1:
        return _rounded(rates[-1] * rates[-1] / rates[-2])
    neighbour = min(rates[best - 1], rates[best + 1], key=lambda rate: scores[rate])
    return _rounded(math.sqrt(rates[best] * neighbour))


def _rounded(rate: float) -> float:
    return float(f"{rate:.2g}")


def grid(
    methods: Sequence[Method], everies: Sequence[int], conditions: Sequence[Mapping[str, Any]],
    make: Callable[[Method, Mapping[str, Any]], TaskGroup],
) -> list[TaskGroup]:  # fmt: skip
    """Return a group for each method, n and condition; baselines without rounds get n = 1 only."""
    groups: list[TaskGroup] = []
    for condition in conditions:
        for method in methods:
            groups += [
                make(method, {**condition, "every": n}) for n in ([1] if method.name in AT_EVERY_STEP else everies)
            ]
    return groups
