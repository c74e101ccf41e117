"""Measures in real processes: how long their steps take, all at once, and the link between them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from swarmstep.comm.group import Group
from swarmstep.comm.metered import Call
from swarmstep.network.collective_costs import CALL, HOP, seconds_of
from swarmstep.network.link import Link
from swarmstep.planner.measure import measured_step
from swarmstep.train.config import Config
from swarmstep.workloads import Workload

SMALL, LARGE = 9, 3  # how often a collective of 16 bytes, and of a vector like the model, is timed
LEAST = 250_000  # elements of that vector: smaller ones say nothing of the rate


def measured_among(comm: Group, config: Config, workload: Workload, parameters: int) -> tuple[float, Link]:
    """Return the seconds of a step of the slowest worker while all compute, and the link between them.

    Collective.

    Args:
        comm: of the real processes.
        config: what each trains.
        workload: its data.
        parameters: of the model.
    """
    comm.gather(torch.zeros(2))  # all begin at once
    step = measured_step(config, workload)
    slowest = float(comm.gather(torch.tensor([step], dtype=torch.float64)).max())
    small = _timed(comm, lambda: comm.gather(torch.zeros(2, dtype=torch.float64)), SMALL)
    vector = torch.zeros(max(parameters, LEAST))
    large = _timed(comm, lambda: comm.mean(vector, comm.size), LARGE)
    return slowest, fitted(small, large, len(vector), comm.size)


def fitted(small: float, large: float, elements: int, workers: int) -> Link:
    """Return the link on which a gather of 16 bytes and a mean of a float32 vector take these seconds."""
    lag = max(0.0, small - CALL) / (2 * (workers - 1))  # `LinkCosts.gather` waits for two lags a message
    delay = max(0.0, lag - HOP)
    call = Call("mean", 4 * elements, workers)
    low, high = 1e3, 1e12
    while high / low > 1.001:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if seconds_of(call, Link(middle, delay)) > large else (low, middle)
    return Link(low, delay)


def _timed(comm: Group, call: Callable[[], object], times: int) -> float:
    """Return the median seconds of a collective, of the rank that waited longest; the first one warms up."""
    found: list[float] = []
    for _ in range(1 + times):
        comm.gather(torch.zeros(1))
        began = time.perf_counter()
        call()
        found.append(time.perf_counter() - began)
    seconds = torch.tensor(found[1:], dtype=torch.float64)
    return statistics.median(comm.gather(seconds).max(0).values.tolist())
