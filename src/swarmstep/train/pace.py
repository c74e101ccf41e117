"""How long a worker's steps take where the run plays unequal machines."""

from __future__ import annotations

import dataclasses

from swarmstep.comm.group import Group
from swarmstep.network.speeds import Speeds
from swarmstep.train.config import Config
from swarmstep.train.speed_options import parse_speeds, unequal


class Pace:
    """Lets a worker's steps take as long as --speeds, --jitter, --disturb and --pace say.

    In one process time is then virtual: a step of --batch examples takes its worker's number of seconds. Real
    processes sleep: the fastest works as fast as it can, the others as much longer as their numbers say.

    Args:
        config: resolved.
        worker: its rank, or in an elastic run its slot; whoever comes later than the first ones is not slowed.
        least: seconds that the fastest worker takes at least for a step of --batch examples.
    """

    def __init__(self, config: Config, worker: int, least: float) -> None:
        self.virtual = has_virtual_time(config)
        self._speeds: Speeds | None = None  # all the same
        if unequal(config) and worker < config.workers:
            speeds = parse_speeds(config)
            fastest = 1.0 if self.virtual else min(speeds.seconds)
            self._speeds = dataclasses.replace(speeds, seconds=tuple(s / fastest for s in speeds.seconds))
        self._worker, self._batch, self._least = worker, config.training.batch, least

    def rest(self, now: float, computed: float, step: int, examples: float) -> float:
        """Return the seconds that a step still has to take, after it has been computed.

        Args:
            now: seconds of the run when the step began.
            computed: seconds that it took.
            step: its number.
            examples: it was computed on.
        """
        share = examples / self._batch
        work = share if self.virtual else max(computed, self._least * share)
        whole = self._speeds.duration(self._worker, now, work, step) if self._speeds else work
        return max(0.0, whole - computed)

    def wait(self, now: float, began: float, step: int, examples: float, comm: Group) -> None:
        """Let the rest of a step's time pass; `began` is its start by the group's clock, the others as above."""
        if rest := self.rest(now, comm.clock() - began, step, examples):
            comm.elapse(rest)


def slot_of(comm: Group) -> int:
    """Return which of the run's workers this is: its rank, or in an elastic run its slot, which outlives ranks."""
    return int(comm.names[comm.rank].partition(".")[0]) if comm.names else comm.rank


def has_virtual_time(config: Config) -> bool:
    """Return whether the run's seconds are virtual."""
    return config.backend == "sim" and (config.asynchronous or unequal(config))
