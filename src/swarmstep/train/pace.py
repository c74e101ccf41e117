"""How long a worker's steps take where the run plays unequal machines."""

from __future__ import annotations

from swarmstep.comm.group import Group
from swarmstep.train.balance_options import parse_speeds
from swarmstep.train.config import Config


class Pace:
    """Lets a worker's step take as long as `--speeds` and `--pace` say.

    In one process with --speeds, time is virtual: a step of --batch examples takes its worker's number of seconds.
    Real processes sleep: the fastest works as fast as it can, the others as much longer as their numbers say.

    Args:
        config: resolved.
        rank: of this worker.
        least: seconds that a step of the fastest worker takes at least.
    """

    def __init__(self, config: Config, rank: int, least: float) -> None:
        speeds = parse_speeds(config.speeds, config.workers)
        self.virtual = has_virtual_time(config)
        self._batch, self._least = config.training.batch, least
        self._factor = speeds[rank] if self.virtual else speeds[rank] / min(speeds)

    def wait(self, began: float, examples: float, comm: Group) -> None:
        """Let the rest of a step's time pass, after it has been computed.

        Args:
            began: when, by the group's clock.
            examples: of the step.
            comm: the group.
        """
        computed = comm.clock() - began
        work = examples / self._batch if self.virtual else max(computed, self._least)
        if work * self._factor > computed:
            comm.elapse(work * self._factor - computed)


def has_virtual_time(config: Config) -> bool:
    """Return whether the run's seconds are virtual."""
    return config.backend == "sim" and config.speeds is not None
