"""Times several cases in turn, so that other load on the machine affects all of them equally."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

from swarmstep.comm.base import Comm

WARM_UPS = 2  # untimed repeats: memory is allocated, connections are made, a strategy runs its first round
MIN_REPEATS = 2  # however long they take


class Case(NamedTuple):
    """What can be timed again and again; all ranks do the same."""

    change: Callable[[], None]  # before each repeat, not timed: what training would have done to the weights
    run: Callable[[], object]


def interleaved_medians(
    cases: Mapping[str, Case], comm: Comm, repeats: int, seconds: float = math.inf, warm_ups: int = WARM_UPS
) -> dict[str, float]:
    """Return for each case the median over the repeats of the time that the slowest rank took.

    Each repeat times every case once and starts with the next case. A barrier before each case makes all ranks
    start together; one after it keeps a rank that has finished from taking the CPU from the others.

    Args:
        cases: name -> case, the same names in the same order on all ranks.
        comm: the group that takes part.
        repeats: number of timed repeats.
        seconds: time limit: make fewer repeats, but at least `MIN_REPEATS`, if they would take longer.
        warm_ups: number of repeats before, not timed, at least 1.
    """
    duration = 0.0
    for _ in range(warm_ups):
        started = time.perf_counter()
        _repeat(cases, comm, 0)
        duration = float(_slowest(torch.tensor([time.perf_counter() - started], dtype=torch.float64), comm))
    repeats = min(repeats, max(MIN_REPEATS, int(min(seconds / max(duration, 1e-6), 1e9))))
    times = torch.stack([_repeat(cases, comm, number) for number in range(repeats)])
    return dict(zip(cases, _slowest(times, comm).quantile(0.5, dim=0).tolist(), strict=True))


def _repeat(cases: Mapping[str, Case], comm: Comm, first: int) -> torch.Tensor:
    """Run every case once, starting with number `first`; return this rank's seconds."""
    ordered = list(cases.values())
    seconds = torch.zeros(len(ordered), dtype=torch.float64)
    for offset in range(len(ordered)):
        index = (first + offset) % len(ordered)
        ordered[index].change()
        barrier(comm)
        started = time.perf_counter()
        ordered[index].run()
        seconds[index] = time.perf_counter() - started
        barrier(comm)
    return seconds


def barrier(comm: Comm) -> None:
    """Wait until all ranks are here."""
    comm.gather(torch.zeros(1))


def _slowest(seconds: torch.Tensor, comm: Comm) -> torch.Tensor:
    return comm.gather(seconds).amax(0)
