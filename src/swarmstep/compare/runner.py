"""Carries out a plan: simulated cells in parallel, real processes one cell at a time; finished cells are kept."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from swarmstep.compare import results, run_processes
from swarmstep.compare.plan import Task, TaskGroup, Untuned
from swarmstep.compare.pool import Pool
from swarmstep.compare.results import Cell
from swarmstep.errors import Interrupted
from swarmstep.launch.stopping import noting_interrupts
from swarmstep.optional_imports import library
from swarmstep.workloads import Workload


class Runner:
    """One comparison, with its cells as files in a folder.

    Args:
        folder: of the comparison; must exist.
        jobs: number of simulated cells run in parallel.
        groups: to run.
        workload: of all groups.

    Raises:
        UsageError: a group has an invalid option, or SciPy is not installed.
        DataError: the folder has runs of this workload on another corpus.
    """

    def __init__(self, folder: Path, jobs: int, groups: Sequence[TaskGroup], workload: Workload) -> None:
        library("scipy")  # the tables need it: fail before hours of runs, not after them
        self.folder = folder
        self.jobs = jobs
        self._plans = [_Plan(group, workload) for group in groups]
        (folder / "cells").mkdir(exist_ok=True)
        self.cells = {cell.key: cell for cell in results.load_cells(folder) if not cell.failed}
        corpora = {str(group.fields["workload"]): workload.corpus for group in groups}
        results.check_corpora(self.cells.values(), corpora)
        self.failed: dict[str, Cell] = {}
        self._started = time.monotonic()
        self._finished = 0

    def run(self) -> None:
        """Run the cells that are missing.

        Raises:
            Interrupted: the user asked to stop; finished cells are kept.
        """
        with noting_interrupts() as interrupts:
            self._simulate(self._plans, interrupts)
            for plan in self._plans:
                for task in plan.missing(self.cells):
                    self._keep(task, run_processes.run(task, self.folder, interrupts), interrupts)

    def _simulate(self, plans: Sequence[_Plan], interrupts: list[int]) -> None:
        """Run all simulated cells; tasks for real processes remain."""
        with Pool(self.jobs) as pool:
            waiting: dict[str, list[_Plan]] = {}
            for plan in plans:
                self._advance(plan, pool, waiting)
            while waiting:
                self._check(interrupts)
                done = pool.get(timeout=0.2)
                if done:
                    task, cell = done
                    self._keep(task, cell, interrupts)
                    for plan in waiting.pop(task.key):
                        self._advance(plan, pool, waiting)

    def _advance(self, plan: _Plan, pool: Pool, waiting: dict[str, list[_Plan]]) -> None:
        """Advance a plan as far as the known cells allow, and queue the tasks it waits for."""
        known = self.cells | self.failed
        while not plan.done and not plan.missing(known):
            plan.advance(known)
        for task in [] if plan.done or plan.real else plan.missing(known):
            if task.key not in waiting:
                pool.put(task)
            if plan not in waiting.setdefault(task.key, []):
                waiting[task.key].append(plan)

    def _keep(self, task: Task, cell: Cell, interrupts: list[int]) -> None:
        if cell.failed:
            self._check(interrupts)  # an interrupt may be the reason
            self.failed[task.key] = cell
        else:
            self.cells[task.key] = cell
        results.add(self.folder, cell)
        self._finished += 1
        self._report(task, cell)

    def _check(self, interrupts: list[int]) -> None:
        if interrupts:
            raise Interrupted(f"stopped on request; {len(self.cells)} cells are done, the same command continues")

    def _report(self, task: Task, cell: Cell) -> None:
        config = task.config
        where = ", ".join([f"n = {config.every}", config.shards, *([config.fault] if config.fault else [])])
        what = f"seed {config.seed}" if task.purpose == "run" else f"tuning, lr {config.lr:g}"
        outcome = f"failed: {cell.failed}" if cell.failed else _score(cell)
        known = self.cells | self.failed
        done, total = sum(plan.finished(known) for plan in self._plans), sum(plan.size for plan in self._plans)
        left = (time.monotonic() - self._started) / self._finished * (total - done)
        print(
            f"{done} of {total}, about {left / 60:.0f} min left: "
            f"{task.method}, {where}, {config.workers} workers, {what}: {outcome} ({cell.seconds:.0f} s)",
            file=sys.stderr,
            flush=True,
        )


class _Plan:
    """The progress of a group: the list of tasks that it waits for."""

    def __init__(self, group: TaskGroup, workload: Workload) -> None:
        self._work = group.work(workload)
        self._tasks = next(self._work)
        trials = len(group.tuning.rates) + group.tuning.extra if len(group.tuning.rates) > 1 else 0
        self.size = trials + len(group.seeds)
        self.done = False
        self._passed = 0  # tasks of earlier lists

    def finished(self, known: Mapping[str, Cell]) -> int:
        """Return how many of its tasks are finished."""
        return self._passed + sum(task.key in known for task in self._tasks)

    @property
    def real(self) -> bool:
        """Whether it waits for real processes."""
        return any(task.config.backend != "sim" for task in self._tasks)

    def missing(self, known: Mapping[str, Cell]) -> list[Task]:
        """Return the tasks that it waits for."""
        return [task for task in self._tasks if task.key not in known]

    def advance(self, known: Mapping[str, Cell]) -> None:
        """Go on to the next list of tasks, with the cells of this one."""
        self._passed += len(self._tasks)
        try:
            self._tasks = self._work.send([known[task.key] for task in self._tasks])
        except (StopIteration, Untuned):
            self._tasks, self.done = [], True


def _score(cell: Cell) -> str:
    """Return what a run has come to, in words."""
    end = cell.points[-1]
    return f"test {cell.metric} {end.test_metric:.4f}" if cell.metric else f"test accuracy {end.test_accuracy:.4f}"
