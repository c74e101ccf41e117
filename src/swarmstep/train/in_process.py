"""A run in this process, of whichever kind."""

from __future__ import annotations

from typing import Any

from swarmstep.train import lockstep_coordinator
from swarmstep.train.asynchronous import simulated as asynchronous
from swarmstep.train.config import Config
from swarmstep.train.job import Job
from swarmstep.train.layerwise import run as layerwise
from swarmstep.workloads import Workload


def simulated(config: Config, workload: Workload, job: Job) -> dict[str, Any]:
    """Run all workers inside this process and return the summary; with a server or without, in rounds or
    not, by steps or by layers."""
    if config.layerwise:
        return layerwise.simulated(config, workload, job)
    run = asynchronous.simulated if config.asynchronous else lockstep_coordinator.simulated
    return run(config, workload, job)
