"""What a worker counts during a run."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from swarmstep.comm.base import Comm
from swarmstep.signal import Round
from swarmstep.train.work_done import WorkDone

MEANS = ("bytes_sent", "bytes_received", "seconds", "compute_seconds", "sync_seconds", "probe_seconds")
DONE = 4  # numbers of `Tally.done`: the fields of `WorkDone` from `steps` on


@dataclasses.dataclass
class Tally:
    """What one worker counts during a run. It survives a stop.

    A newcomer of an elastic run goes on with that of the worker whose state it takes, so that its figures stand
    for the whole run as well; a round that landed in that very step may be missing.

    Attributes:
        bytes_sent: payload that this worker sent in rounds.
        bytes_received: payload that it received in them.
        seconds: of training, without evaluations and checkpoints. What neither `compute_seconds` nor
            `sync_seconds` explains is waiting for the others outside of rounds, rounds that were given up, and
            changes of membership.
        compute_seconds: of local steps: batch, forward and backward pass, optimizer, pace. By the worker's own
            clock, so in simulation without the other workers' turns.
        sync_seconds: that training spent on rounds, as `Round.seconds`: with the wait for the slowest worker in
            real processes, without it in simulation; not what a delayed round did in the background.
        probe_seconds: of the rounds, for probes.
        steps: local steps that this worker took.
        wait_seconds: of the rounds but the last, waiting for the slowest; not counted in elastic runs.
        send_seconds: of them, exchanging vectors.
        train_loss: mean over the workers of their mean losses since they last told each other: at a look of the
            lockstep coordinator, or in a round of an elastic run. NaN: not yet known.
        distrusted: whom the strategy left out of the last round, as `Distrust` has it.
    """

    bytes_sent: int = 0
    bytes_received: int = 0
    seconds: float = 0.0
    compute_seconds: float = 0.0
    sync_seconds: float = 0.0
    probe_seconds: float = 0.0
    steps: int = 0
    wait_seconds: float = 0.0
    send_seconds: float = 0.0
    train_loss: float = math.nan
    distrusted: list[dict[str, Any]] = dataclasses.field(default_factory=list[dict[str, Any]])

    def add_round(self, report: Round, rank: int) -> None:
        """Count a round that has landed; `rank` is this worker's."""
        self.bytes_sent += report.bytes_sent
        self.bytes_received += report.bytes_received
        self.sync_seconds += report.seconds
        self.probe_seconds += report.probe_seconds
        if report.wait_seconds and not report.members:  # in an elastic run ranks change
            self.wait_seconds += report.wait_seconds[rank]
            self.send_seconds += report.send_seconds[rank]
        self.distrusted = [dataclasses.asdict(worker) for worker in report.distrusted]

    def means(self, comm: Comm | None) -> dict[str, float]:
        """Return the mean over the workers of each of MEANS; without a group, this worker's own. Collective."""
        own = torch.tensor([getattr(self, name) for name in MEANS], dtype=torch.float64)
        return dict(zip(MEANS, (comm.gather(own).sum(dim=0) / comm.size if comm else own).tolist(), strict=True))

    def done(self, *, timed: bool) -> list[float]:
        """Return what this worker has done, DONE numbers.

        Args:
            timed: whether `seconds` are this worker's alone: what is not explained otherwise is then waiting, too.
        """
        outside = max(0.0, self.seconds - self.compute_seconds - self.sync_seconds) if timed else 0.0
        waited = self.wait_seconds + outside
        return [float(self.steps), self.compute_seconds, waited, self.send_seconds]


def work_done(rows: Tensor) -> list[WorkDone]:
    """Return what the workers have done.

    Args:
        rows: [W, DONE], of all ranks.
    """
    return [WorkDone(rank, round(steps), *seconds) for rank, (steps, *seconds) in enumerate(rows.tolist())]
