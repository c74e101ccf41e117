"""Starts the processes of a benchmark, and returns the report that rank 0 hands back."""

from __future__ import annotations

import dataclasses
import json
import signal
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from swarmstep.comm.dist import DistComm
from swarmstep.errors import CommError, Interrupted, NotFinite, SwarmstepError, UsageError
from swarmstep.launch.processes import Place, run_group
from swarmstep.launch.stopping import noting_interrupts
from swarmstep.microbench.benchmarks import BENCHMARKS, JOB
from swarmstep.microbench.results import Report

ERRORS = {kind.exit_code: kind for kind in (UsageError, CommError, NotFinite)}


class WorkerGroup(Protocol):
    """Starts workers with their settings and returns their report."""

    def __call__(self, workers: int, settings: Mapping[str, Any], place: Place | None = None) -> Report:
        """Run the workers until they finish."""
        ...


def start_group(
    benchmark: str, workers: int, settings: Mapping[str, Any], patience: float, place: Place | None = None
) -> Report:
    """Run a benchmark's `work` in real processes and return the report of rank 0.

    Args:
        benchmark: its name.
        workers: number of processes.
        settings: passed to `work`; JSON.
        patience: seconds after which processes that still run are ended.
        place: where the processes run; None for loopback.

    Raises:
        CommError: a worker was killed, or they took too long.
        Interrupted: the user asked to stop.
        SwarmstepError: raised by a worker.
    """
    place = place or Place()
    with tempfile.TemporaryDirectory(prefix="swarmstep-") as name, noting_interrupts() as interrupts:
        report = Path(name) / "report.json"
        job = {"benchmark": benchmark, "settings": settings, "patience": patience, "report": str(report)}
        place = dataclasses.replace(place, environment={**place.environment, JOB: json.dumps(job)})
        outcome = run_group(
            ["bench", benchmark],
            workers,
            place,
            interrupts=interrupts,
            patience=patience,
            ask=signal.SIGKILL,  # they have nothing to save
        )
        if interrupts:
            raise Interrupted("stopped on request, before all was measured")
        if outcome.code:
            nothing = "; nothing was measured" if outcome.killed else ""
            raise ERRORS.get(outcome.code, SwarmstepError)(outcome.message + nothing)
        return Report.loads(report.read_text())


def work(job: Mapping[str, Any]) -> None:
    """Be a worker: measure, and leave the report where `start_group` looks for it."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "a Synchronizer ended without finish")  # what is measured has no result
    comm = DistComm.from_env("gloo", patience=job["patience"])
    try:
        report = BENCHMARKS[job["benchmark"]].load().work(comm, job["settings"])
    finally:
        comm.close()
    if comm.rank == 0:
        Path(job["report"]).write_text(report.dumps())
