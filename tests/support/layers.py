"""Small runs that are trained layer by layer, in process or in the pool."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from runs import classes, resolved
from swarmstep import Comm, simulate
from swarmstep.errors import Interrupted
from swarmstep.train.job import Job
from swarmstep.train.layerwise.run import run

SETTINGS = {"layers": "3", "width": "10", "deeper": "0", "iterations": "40", "tolerance": "0"}


def layers(comm: Comm, fields: dict[str, Any], out: str, job: dict[str, Any]) -> dict[str, Any]:
    """Be one worker; return the summary, or the line with which the run was interrupted."""
    workload = classes()
    settings = {**SETTINGS, **fields.get("settings", {})}
    config = resolved(workload, {**fields, "method": "ssfn", "workers": comm.size, "settings": settings})
    try:
        return run(config, workload, comm, Job(out=Path(out), quiet=True, **job))
    except Interrupted as error:
        return {"interrupted": str(error)}


def grow(fields: dict[str, Any], out: Path, workers: int = 3, **job: Any) -> dict[str, Any]:
    """Run all workers in process."""
    return simulate(lambda comm: layers(comm, fields, str(out), job), workers)[0]
