"""Takes the times of several things in turn, so that whatever else the machine does hits all alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

from swarmstep.comm.base import Comm

WARM_UPS = 2  # untimed turns: memory is allocated, connections are made, a strategy takes its first round
LEAST = 2  # turns at least, however long they take


class Case(NamedTuple):
    """What can be timed again and again; all ranks do the same."""

    change: Callable[[], None]  # before each turn, not timed: what training would have done to the weights
    run: Callable[[], object]


def race(
    things: Mapping[str, Case], comm: Comm, repeats: int, seconds: float = math.inf, warm_ups: int = WARM_UPS
) -> dict[str, float]:
    """Return the median over the turns of the time each thing took the slowest rank.

    The turns are outside, the things inside, and each turn begins with another thing. A barrier before each time
    makes all begin together; one behind it keeps a rank that is done from taking the processor from the others.

    Args:
        things: name -> thing, the same names in the same order on all ranks.
        comm: the group that takes part.
        repeats: turns.
        seconds: make fewer turns, but no fewer than `LEAST`, if all would take longer than this.
        warm_ups: turns before, not timed, at least 1.
    """
    took = 0.0
    for _ in range(warm_ups):
        started = time.perf_counter()
        _turn(things, comm, 0)
        took = float(_slowest(torch.tensor([time.perf_counter() - started], dtype=torch.float64), comm))
    repeats = min(repeats, max(LEAST, int(min(seconds / max(took, 1e-6), 1e9))))
    times = torch.stack([_turn(things, comm, turn) for turn in range(repeats)])
    return dict(zip(things, _slowest(times, comm).quantile(0.5, dim=0).tolist(), strict=True))


def _turn(things: Mapping[str, Case], comm: Comm, first: int) -> torch.Tensor:
    """Run every thing once, beginning with number `first`; return this rank's seconds."""
    listed = list(things.values())
    seconds = torch.zeros(len(listed), dtype=torch.float64)
    for place in range(len(listed)):
        index = (first + place) % len(listed)
        listed[index].change()
        barrier(comm)
        started = time.perf_counter()
        listed[index].run()
        seconds[index] = time.perf_counter() - started
        barrier(comm)
    return seconds


def barrier(comm: Comm) -> None:
    """Wait until all ranks are here."""
    comm.gather(torch.zeros(1))


def _slowest(seconds: torch.Tensor, comm: Comm) -> torch.Tensor:
    return comm.gather(seconds).amax(0)
