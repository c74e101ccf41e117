"""The cost of a round by number of workers and size of the model: ``bench scale``."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch

from swarmstep.comm.group import Group
from swarmstep.comm.sim import simulate
from swarmstep.microbench.cases import CaseMaker
from swarmstep.microbench.checks import checked, missing_memory
from swarmstep.microbench.interleaved_timing import MIN_REPEATS, Case, barrier, interleaved_medians
from swarmstep.microbench.results import Report, Skipped, rows_of
from swarmstep.microbench.rounds import ALL_REDUCE, OUTER, PULL, synchronized
from swarmstep.microbench.settings import ScaleSettings
from swarmstep.microbench.workers import WorkerGroup

WORKERS = (2, 4, 8, 16, 32, 64)
SIZES = (10**5, 10**6, 10**7, 10**8)
QUICK = ((2, 4), (10**5,))
TENSORS = 80
SECONDS = 2.0  # after which a cell gets no more than the minimum of repeats
WARM_UPS = 1

LIMITS = {"local-sgd": ALL_REDUCE, "swarm": OUTER, "pso-ps": PULL}
PASSES = "sum + a pass a worker"

REAL, SIMULATED = "round", "simulate"
VECTORS = {  # of P floats that a worker holds at most, including those of the limit
    REAL: {"local-sgd": 4, "swarm": 7, "pso-ps": 12},
    SIMULATED: {"local-sgd": 6, "swarm": 8, "pso-ps": 9},
}


class GridPoint(NamedTuple):
    """One cell of the grid."""

    workers: int
    parameters: int
    strategy: str


def lead(settings: ScaleSettings, group: WorkerGroup) -> Report:
    """Start a group of real processes for each number of workers, and one process that simulates."""
    checked(settings, max_processes=(1, 64), most=(1, 10**10), repeats=(1, 10_000))
    counts, sizes = QUICK if settings.quick else (WORKERS, SIZES)
    of_workers = {"repeats": settings.repeats, "seed": settings.seed}
    report = Report()
    for workers in counts:
        if workers > settings.max_processes:
            reason = f"more processes than --max-processes {settings.max_processes}"
            report.skipped.append(Skipped(REAL, reason, workers))
        elif cells := _fitting(REAL, _all((workers,), sizes), settings.most, report):
            report.add(group(workers, {"kind": REAL, "cells": cells, **of_workers}))
    if cells := _fitting(SIMULATED, _all(counts, sizes), settings.most, report):
        report.add(group(1, {"kind": SIMULATED, "cells": cells, **of_workers}))
    return report


def _fitting(kind: str, cells: Iterator[GridPoint], most: int, report: Report) -> list[GridPoint]:
    """Return the cells that fit into memory and limits; add the others to the skipped ones of the report."""
    fitting: list[GridPoint] = []
    for cell in cells:
        elements = cell.workers * cell.parameters
        name = f"{kind} {cell.strategy}"
        reason = missing_memory(elements, VECTORS[kind][cell.strategy])
        if elements > most:
            name, reason = kind, f"more than --most {most:,} parameters in all"
        skipped = Skipped(name, reason, cell.workers, cell.parameters)
        if not reason:
            fitting.append(cell)
        elif skipped not in report.skipped:  # the same for all strategies, listed once
            report.skipped.append(skipped)
    return fitting


def _all(counts: tuple[int, ...], sizes: tuple[int, ...]) -> Iterator[GridPoint]:
    return (GridPoint(w, p, strategy) for w in counts for p in sizes for strategy in LIMITS)


def work(comm: Group, settings: Mapping[str, Any]) -> Report:
    """Measure as one of the workers."""
    report = Report()
    measure = _real if settings["kind"] == REAL else _simulated
    for cell in (GridPoint(*fields) for fields in settings["cells"]):
        name = f"{settings['kind']} {cell.strategy}"
        limit = LIMITS[cell.strategy] if settings["kind"] == REAL else PASSES
        medians = measure(cell, comm, settings["repeats"], settings["seed"])
        report.rows += rows_of({name: medians[0], limit: medians[1]}, {name: limit}, cell.workers, cell.parameters)
        gc.collect()  # the next cell may need the memory of this one
    return report


def _real(cell: GridPoint, comm: Group, repeats: int, seed: int) -> tuple[float, float]:
    """Return the medians of the round and of its limit."""
    make = CaseMaker(comm, cell.parameters, TENSORS, seed)
    limit: Case
    if cell.strategy == "local-sgd":
        limit = make.all_reduce()
    else:
        limit = make.outer_move() if cell.strategy == "swarm" else make.pull_move(broadcast=True)
    cases = {"round": synchronized(make, cell.strategy), "limit": limit}
    medians = interleaved_medians(cases, comm, repeats, SECONDS, WARM_UPS)
    return medians["round"], medians["limit"]


def _simulated(cell: GridPoint, _: Group, repeats: int, seed: int) -> tuple[float, float]:
    """Return the medians of one round of all workers in this process, and of the minimum of passes."""
    rounds: list[float] = []
    passes: list[float] = []

    def train(comm: Group) -> None:
        make = CaseMaker(comm, cell.parameters, TENSORS, seed)
        case = synchronized(make, cell.strategy)
        minimum = _Passes(cell) if comm.rank == 0 else None
        first_started = math.nan
        for repeat in range(WARM_UPS + repeats):
            case.change()
            barrier(comm)
            started = time.perf_counter()
            case.run()
            # Gathering the times is a barrier, too: no change of weights falls into a round.
            times = comm.gather(torch.tensor([started, time.perf_counter()], dtype=torch.float64))
            first_started = float(times[:, 0].min()) if repeat == 0 else first_started
            if minimum and repeat >= WARM_UPS:
                rounds.append(float(times[:, 1].max() - times[:, 0].min()))
                passes.append(minimum.seconds())
            # The same decision on all ranks, since `times` is.
            if repeat + 1 >= WARM_UPS + MIN_REPEATS and float(times[:, 1].max()) - first_started > SECONDS:
                break

    simulate(train, cell.workers)
    return statistics.median(rounds), statistics.median(passes)


class _Passes:
    """The minimum for a mean of W workers in one process: add up W vectors, and write the sum to each."""

    def __init__(self, cell: GridPoint) -> None:
        self._vectors = [torch.ones(cell.parameters) for _ in range(cell.workers)]
        self._total = torch.zeros(cell.parameters)

    def seconds(self) -> float:
        started = time.perf_counter()
        self._total.zero_()
        for vector in self._vectors:
            self._total.add_(vector, alpha=1.0 / len(self._vectors))
        for vector in self._vectors:
            vector.copy_(self._total)
        return time.perf_counter() - started
