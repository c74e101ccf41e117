"""What a round costs by number of workers and size of the model: ``bench scale``."""

from __future__ import annotations

import argparse
import gc
import math
import statistics
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch

from swarmstep.comm.group import Group
from swarmstep.comm.sim import simulate
from swarmstep.microbench.cases import Maker
from swarmstep.microbench.interleaved_timing import LEAST, Case, barrier, race
from swarmstep.microbench.options import checked, memory_lacks, whole
from swarmstep.microbench.results import Report, Skipped, rows_of
from swarmstep.microbench.rounds import ALL_REDUCE, OUTER, PULL, synchronized
from swarmstep.microbench.workers import WorkerGroup

WORKERS = (2, 4, 8, 16, 32, 64)
SIZES = (10**5, 10**6, 10**7, 10**8)
MOST = 5 * 10**8  # parameters of all workers together
QUICK = ((2, 4), (10**5,))
TENSORS = 80
SECONDS = 2.0  # after which a cell gets no more turns than it must
WARM_UPS = 1

LIMITS = {"local-sgd": ALL_REDUCE, "swarm": OUTER, "pso-ps": PULL}
PASSES = "sum + a pass a worker"

REAL, SIMULATED = "round", "simulate"
VECTORS = {  # of P floats a worker holds at most, with its limit
    REAL: {"local-sgd": 4, "swarm": 7, "pso-ps": 12},
    SIMULATED: {"local-sgd": 6, "swarm": 8, "pso-ps": 9},
}


class GridPoint(NamedTuple):
    """One thing to measure."""

    workers: int
    parameters: int
    strategy: str


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    add = parser.add_argument
    add(
        "--max-processes",
        type=whole,
        default=16,
        metavar="N",
        help="no real processes beyond so many (default: 16)",
    )
    add("--repeats", type=whole, default=7, metavar="R", help="turns a cell, of which the median counts; fewer "
        "where they take long (default: 7)")  # fmt: skip
    add("--most", type=whole, default=MOST, metavar="P", help="no cells in which all workers together have more "
        "parameters (default: 5e8)")  # fmt: skip
    add("--quick", action="store_true", help="the small cells only")


def lead(args: argparse.Namespace, group: WorkerGroup) -> Report:
    """Start one group of real processes for each number of workers, and one process that simulates."""
    checked(args, max_processes=(1, 64), most=(1, 10**10), repeats=(1, 10_000))
    counts, sizes = QUICK if args.quick else (WORKERS, SIZES)
    settings = {"repeats": args.repeats, "seed": args.seed}
    report = Report()
    for workers in counts:
        if workers > args.max_processes:
            reason = f"more processes than --max-processes {args.max_processes}"
            report.skipped.append(Skipped(REAL, reason, workers))
        elif cells := _cells(REAL, _all((workers,), sizes), args.most, report):
            report.add(group(workers, {"kind": REAL, "cells": cells, **settings}))
    if cells := _cells(SIMULATED, _all(counts, sizes), args.most, report):
        report.add(group(1, {"kind": SIMULATED, "cells": cells, **settings}))
    return report


def _cells(kind: str, cells: Iterator[GridPoint], most: int, report: Report) -> list[GridPoint]:
    """Return what fits; the rest goes among what is skipped."""
    fitting: list[GridPoint] = []
    for cell in cells:
        elements = cell.workers * cell.parameters
        name = f"{kind} {cell.strategy}"
        reason = memory_lacks(elements, VECTORS[kind][cell.strategy])
        if elements > most:
            name, reason = kind, f"more than --most {most:,} parameters in all"
        left = Skipped(name, reason, cell.workers, cell.parameters)
        if not reason:
            fitting.append(cell)
        elif left not in report.skipped:  # the same for all strategies: said once
            report.skipped.append(left)
    return fitting


def _all(counts: tuple[int, ...], sizes: tuple[int, ...]) -> Iterator[GridPoint]:
    return (GridPoint(w, p, strategy) for w in counts for p in sizes for strategy in LIMITS)


def work(comm: Group, settings: Mapping[str, Any]) -> Report:
    """Measure, as one of the workers."""
    report = Report()
    measure = _real if settings["kind"] == REAL else _simulated
    for cell in (GridPoint(*fields) for fields in settings["cells"]):
        name = f"{settings['kind']} {cell.strategy}"
        limit = LIMITS[cell.strategy] if settings["kind"] == REAL else PASSES
        medians = measure(cell, comm, settings["repeats"], settings["seed"])
        report.rows += rows_of({name: medians[0], limit: medians[1]}, {name: limit}, cell.workers, cell.parameters)
        gc.collect()  # the vectors of the next cell may need this one's memory
    return report


def _real(cell: GridPoint, comm: Group, repeats: int, seed: int) -> tuple[float, float]:
    """Return the medians of the round and of its limit."""
    make = Maker(comm, cell.parameters, TENSORS, seed)
    limit: Case
    if cell.strategy == "local-sgd":
        limit = make.all_reduce()
    else:
        limit = make.outer_move() if cell.strategy == "swarm" else make.pull_move(news=True)
    things = {"round": synchronized(make, cell.strategy), "limit": limit}
    medians = race(things, comm, repeats, SECONDS, WARM_UPS)
    return medians["round"], medians["limit"]


def _simulated(cell: GridPoint, _: Group, repeats: int, seed: int) -> tuple[float, float]:
    """Return the medians of one round of all workers in this process, and of the passes it cannot do without."""
    rounds: list[float] = []
    passes: list[float] = []

    def train(comm: Group) -> None:
        make = Maker(comm, cell.parameters, TENSORS, seed)
        thing = synchronized(make, cell.strategy)
        least = _Passes(cell) if comm.rank == 0 else None
        began = math.nan
        for turn in range(WARM_UPS + repeats):
            thing.change()
            barrier(comm)
            started = time.perf_counter()
            thing.run()
            # All ends are known before anyone goes on, so that no change falls into a round.
            times = comm.gather(torch.tensor([started, time.perf_counter()], dtype=torch.float64))
            began = float(times[:, 0].min()) if turn == 0 else began
            if least and turn >= WARM_UPS:
                rounds.append(float(times[:, 1].max() - times[:, 0].min()))
                passes.append(least.seconds())
            # The same on all ranks, as `times` is.
            if turn + 1 >= WARM_UPS + LEAST and float(times[:, 1].max()) - began > SECONDS:
                break

    simulate(train, cell.workers)
    return statistics.median(rounds), statistics.median(passes)


class _Passes:
    """The least that W workers in one process do for a mean: add up W vectors, and write the sum to each."""

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
