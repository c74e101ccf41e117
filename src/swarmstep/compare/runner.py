"""Carries out a plan: simulated runs side by side, real ones alone; what is done is never done again."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from swarmstep.compare import results, run_processes
from swarmstep.compare.extra import library
from swarmstep.compare.plan import Task, TaskGroup, Untuned
from swarmstep.compare.pool import Pool
from swarmstep.compare.results import Cell
from swarmstep.errors import Interrupted
from swarmstep.launch.processes import noting_interrupts
from swarmstep.workloads import Workload


class Runner:
    """One comparison, whose cells are files in a folder.

    Args:
        folder: of the comparison; exists.
        jobs: how many simulated cells at once.
        groups: what is wanted.
        workload: of all groups.

    Raises:
        UsageError: a group asks for what does not exist, or SciPy is not installed.
    """

    def __init__(self, folder: Path, jobs: int, groups: Sequence[TaskGroup], workload: Workload) -> None:
        library("scipy")  # which the tables need: better before hours of runs than after them
        self.folder = folder
        self.jobs = jobs
        self._plans = [_Plan(group, workload) for group in groups]
        (folder / "cells").mkdir(exist_ok=True)
        self.cells = {cell.key: cell for cell in results.load_cells(folder) if not cell.failed}
        self.failed: dict[str, Cell] = {}
        self._began = time.monotonic()
        self._made = 0

    def run(self) -> None:
        """Run whatever is missing.

        Raises:
            Interrupted: somebody asked to stop; what is done is kept.
        """
        with noting_interrupts() as interrupts:
            self._simulate(self._plans, interrupts)
            for plan in self._plans:
                for task in plan.missing(self.cells):
                    self._keep(task, run_processes.do(task, self.folder, interrupts), interrupts)

    def _simulate(self, plans: Sequence[_Plan], interrupts: list[int]) -> None:
        """Do all that is simulated; tasks for real processes are left."""
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
        """Go on with a plan as far as what is known allows, and hand in what it lacks."""
        known = self.cells | self.failed
        while not plan.over and not plan.missing(known):
            plan.go_on(known)
        for task in [] if plan.over or plan.real else plan.missing(known):
            if task.key not in waiting:
                pool.put(task)
            if plan not in waiting.setdefault(task.key, []):
                waiting[task.key].append(plan)

    def _keep(self, task: Task, cell: Cell, interrupts: list[int]) -> None:
        if cell.failed:
            self._check(interrupts)  # that may be why
            self.failed[task.key] = cell
        else:
            self.cells[task.key] = cell
        results.add(self.folder, cell)
        self._made += 1
        self._say(task, cell)

    def _check(self, interrupts: list[int]) -> None:
        if interrupts:
            raise Interrupted(f"stopped on request; {len(self.cells)} cells are done, the same command goes on")

    def _say(self, task: Task, cell: Cell) -> None:
        config = task.config
        where = ", ".join([f"n = {config.every}", config.shards, *([config.fault] if config.fault else [])])
        what = f"seed {config.seed}" if task.purpose == "run" else f"tuning, lr {config.lr:g}"
        said = f"failed: {cell.failed}" if cell.failed else f"test accuracy {cell.points[-1].test_accuracy:.4f}"
        known = self.cells | self.failed
        done, total = sum(plan.done(known) for plan in self._plans), sum(plan.size for plan in self._plans)
        left = (time.monotonic() - self._began) / self._made * (total - done)
        print(
            f"{done} of {total}, about {left / 60:.0f} min left: "
            f"{task.method}, {where}, {config.workers} workers, {what}: {said} ({cell.seconds:.0f} s)",
            file=sys.stderr,
            flush=True,
        )


class _Plan:
    """A group on its way: which list of tasks it waits for."""

    def __init__(self, group: TaskGroup, workload: Workload) -> None:
        self._work = group.work(workload)
        self._tasks = next(self._work)
        trials = len(group.tuning.rates) + group.tuning.extra if len(group.tuning.rates) > 1 else 0
        self.size = trials + len(group.seeds)
        self.over = False
        self._passed = 0  # tasks of the lists before

    def done(self, known: Mapping[str, Cell]) -> int:
        """Return how many of its tasks are done."""
        return self._passed + sum(task.key in known for task in self._tasks)

    @property
    def real(self) -> bool:
        """Whether it waits for runs in real processes."""
        return any(task.config.backend != "sim" for task in self._tasks)

    def missing(self, known: Mapping[str, Cell]) -> list[Task]:
        """Return the tasks it waits for."""
        return [task for task in self._tasks if task.key not in known]

    def go_on(self, known: Mapping[str, Cell]) -> None:
        """Take note of the cells it waited for."""
        self._passed += len(self._tasks)
        try:
            self._tasks = self._work.send([known[task.key] for task in self._tasks])
        except (StopIteration, Untuned):
            self._tasks, self.over = [], True
