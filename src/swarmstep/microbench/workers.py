"""Real processes that measure together and hand what they found to the process that started them."""

from __future__ import annotations

import dataclasses
import json
import signal
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from swarmstep.errors import CommError, Interrupted, NotFinite, SwarmstepError, UsageError
from swarmstep.launch.processes import Place, noting_interrupts, run_group
from swarmstep.microbench.results import Report

JOB = "SWARMSTEP_BENCH"  # the environment variable that makes a process a worker
KINDS = {kind.exit_code: kind for kind in (UsageError, CommError, NotFinite)}


class WorkerGroup(Protocol):
    """Starts a number of workers with their settings, somewhere, and returns what they found."""

    def __call__(self, workers: int, settings: Mapping[str, Any], place: Place | None = None) -> Report:
        """Run them to their end."""
        ...


def start_group(
    benchmark: str, workers: int, settings: Mapping[str, Any], patience: float, place: Place | None = None
) -> Report:
    """Run a benchmark's `work` in real processes and return what rank 0 found.

    Args:
        benchmark: its name.
        workers: how many processes.
        settings: what `work` is given; JSON.
        patience: seconds after which whatever still runs is ended.
        place: where.

    Raises:
        CommError: a worker was ended, or they took too long.
        Interrupted: somebody asked to stop.
        SwarmstepError: what a worker raised.
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
            ask=signal.SIGKILL,  # there is nothing that they would save
        )
        if interrupts:
            raise Interrupted("stopped on request, before all was measured")
        if outcome.code:
            nothing = "; nothing was measured" if outcome.killed else ""
            raise KINDS.get(outcome.code, SwarmstepError)(outcome.message + nothing)
        return Report.loads(report.read_text())
