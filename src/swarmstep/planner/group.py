"""Measures in real processes: how long their steps take, all at once, and the link between them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from swarmstep.comm.data_parallel import reduce_gradient
from swarmstep.comm.group import Group
from swarmstep.comm.metered import Call
from swarmstep.network.collective_costs import CALL, HOP, seconds_of
from swarmstep.network.link import Link
from swarmstep.planner.measure import measured_step
from swarmstep.planner.prices import LOOK, Timed, Work
from swarmstep.train.config import Config
from swarmstep.train.rank_0 import from_rank_0
from swarmstep.workloads import Workload

SMALL, LARGE = 9, 3  # how often a collective of 16 bytes, and of a vector like the model, is timed
TOGETHER = 3.0  # seconds in which all compute, so that those on one machine get in each other's way
LEAST = 250_000  # elements of that vector: smaller ones say nothing of the rate


def measured_among(
    comm: Group, config: Config, workload: Workload, link: Link | None, work: Work | None
) -> tuple[Work | None, Link]:
    """Return the work of a worker while all compute, and the link between them.

    Collective.

    Args:
        comm: of the real processes, which adds as training does.
        config: what each trains.
        workload: its data.
        link: known beforehand: then no call is measured.
        work: of one that computes alone; rank 0's counts.

    Returns:
        The work with the steps of the slowest worker, and what calls take between them; None on other ranks.
    """
    calls = {codec: found.calls for codec, found in work.rounds.items()} if work else {}
    told = json.dumps([work.parameters if work else 0, calls])
    parameters, rounds = json.loads(from_rank_0(lambda: told, comm))  # and all begin at once
    step = measured_step(config, workload, TOGETHER)
    slowest = float(comm.gather(torch.tensor([step], dtype=torch.float64)).max())
    if link:
        return work and work.slowed(slowest), link
    look = _timed(comm, lambda: comm.gather(torch.zeros(LOOK // 8, dtype=torch.float64)), SMALL)
    small = _timed(comm, lambda: comm.gather(torch.zeros(2, dtype=torch.float64)), SMALL)
    vector = torch.zeros(max(parameters, LEAST))
    large = _timed(comm, lambda: reduce_gradient(vector), LARGE)
    found = fitted(small.seconds, large.seconds, len(vector), comm.size)
    # A gradient smaller than that vector is computed from the link.
    reduced = large if len(vector) == parameters else None
    timed = {codec: _timed_round(comm, [Call(*call) for call in calls]) for codec, calls in rounds.items()}
    if work is None:
        return None, found
    slowed = work.slowed(slowest)
    between = {codec: replace(round_, timed=timed[codec]) for codec, round_ in slowed.rounds.items()}
    return replace(slowed, rounds=between, reduced=reduced, looked=look), found


def _timed_round(comm: Group, calls: list[Call]) -> Timed | None:
    """Return the seconds of the calls of a round, one after another; None if a part of the group makes some."""
    if any(call.size != comm.size for call in calls):
        return None
    following = [(rank - 1) % comm.size for rank in range(comm.size)]
    verbs: dict[str, Callable[[int], object]] = {
        "mean": lambda sent: comm.mean(torch.zeros(sent // 4)),
        "gather": lambda sent: comm.gather(torch.zeros(sent, dtype=torch.uint8)),
        "broadcast": lambda sent: comm.broadcast(torch.zeros(sent, dtype=torch.uint8), 0),
        "permute": lambda sent: comm.permute(torch.zeros(sent, dtype=torch.uint8), following),
        "all_to_all": lambda sent: comm.all_to_all(torch.zeros(comm.size, sent // comm.size, dtype=torch.uint8)),
    }
    return _timed(comm, lambda: [verbs[call.verb](call.bytes) for call in calls], LARGE)


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


def _timed(comm: Group, call: Callable[[], object], times: int) -> Timed:
    """Return the median seconds of a collective, of the rank that waited longest; the first one warms up."""
    found: list[tuple[float, float]] = []
    for _ in range(1 + times):
        comm.gather(torch.zeros(1))
        began, worked = time.perf_counter(), time.process_time()
        call()
        found.append((time.perf_counter() - began, time.process_time() - worked))
    longest = comm.gather(torch.tensor(found[1:], dtype=torch.float64)).max(0).values
    return Timed(*longest.median(0).values.tolist())
