"""What opens every round: each worker says where it is and how it is doing, and all know it of all."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from swarmstep.comm.base import Comm
from swarmstep.comm.metered import Metered, Traffic
from swarmstep.errors import CollectiveMismatch
from swarmstep.signal import Roll

GROWTH = 1000.0  # times the norm after the last round, above which weights are as good as not finite
LEAST = 0.01  # root mean square that weights are taken to have at least, so that they may start at 0


HEAD = 7  # numbers of a row before the fragment and the reports


@dataclasses.dataclass(frozen=True)
class RankStatus:
    """What one worker reports.

    `number` of the round, from 1, 0 if the worker has finished; the `step` it is at, 0 if it has finished;
    `loss`, its mean training loss since the last round, +inf if it has none, NaN if its weights are not finite or
    off by orders of magnitude; `weight`, of its steps since the last round; `seconds` it spent computing since the
    last round, and waiting and sending in that round; whether it requests a round, and of which fragment; the
    `reports` of its strategy.
    """

    number: int
    step: int
    loss: float
    weight: float
    seconds: tuple[float, float, float]
    requested: bool
    fragment: int
    reports: tuple[float, ...]

    def row(self, fragments: int) -> list[float]:
        """Return the numbers that are sent."""
        fragment = [float(self.fragment if self.number else -1)] if fragments > 1 else []
        number = self.number if self.requested else -self.number
        return [number, self.step, self.loss, self.weight, *self.seconds, *fragment, *self.reports]


@dataclasses.dataclass(frozen=True)
class RollCall:
    """The roll, whether any worker requests a round, and of which fragment."""

    roll: Roll
    due: bool
    fragment: int
    traffic: Traffic  # that it cost


def call_roll(status: RankStatus, comm: Metered, island: Comm | None, fragments: int) -> RollCall:
    """Gather the status of all workers: 56 bytes from each, 8 for each report, and 8 where there are fragments.

    Where a worker is an island of ranks, theirs are combined first: the mean loss, the sums of weights and
    reports, the longest times.

    Raises:
        CollectiveMismatch: the workers, or the ranks of an island, are at different rounds.
    """
    head = HEAD + (fragments > 1)
    row = torch.tensor(status.row(fragments), dtype=torch.float64)
    if island is not None:
        row = _of_island(island.gather(row), head)
    with comm.counting() as traffic:
        rows = comm.gather(row).clone()  # it outlives the round's memory
    roll = Roll(rows[:, 0].abs(), rows[:, 1], rows[:, 2], rows[:, 3], rows[:, 4:HEAD], rows[:, head:])
    _check_rounds(roll.rounds)
    fragment = int(rows[:, HEAD].max()) if fragments > 1 else 0
    return RollCall(roll, bool((rows[:, 0] > 0).any()), max(0, fragment), traffic)


def _of_island(rows: Tensor, head: int) -> Tensor:
    """Return the row of a worker from those of the ranks that hold its shards; a report is a sum over x."""
    _check_rounds(rows[:, 0].abs())
    row = rows.sum(dim=0)
    row[0] = rows[:, 0].max() if (rows[:, 0] > 0).any() else rows[:, 0].min()
    row[1] = rows[:, 1].max()
    row[2] = rows[:, 2].mean()  # NaN if any is
    row[4:HEAD] = rows[:, 4:HEAD].amax(dim=0)
    row[HEAD:head] = rows[0, HEAD:head]
    return row


def _check_rounds(numbers: Tensor) -> None:
    training = numbers[numbers > 0]
    if len(training) and training.min() < training.max():
        raise CollectiveMismatch(
            f"the ranks are at different rounds, {[int(n) for n in numbers]} in rank order (0: finished); "
            "call step() on all ranks until each of them calls finish()"
        )


def reported_loss(loss: float, x: Tensor, parameters: int, before: float) -> float:
    """Return the loss as an `RankStatus` has it: NaN where x is not finite, or off by orders of magnitude.

    Args:
        loss: the worker's mean loss since the last round.
        x: its vector [P].
        parameters: how many of its first elements are parameters.
        before: their Euclidean norm after the last round.
    """
    most = GROWTH * max(before, LEAST * math.sqrt(parameters))
    norm, buffers = float(x[:parameters].norm()), x[parameters:]
    if not norm <= most or not (bool(buffers.sum().isfinite()) or bool(buffers.isfinite().all())):
        return math.nan
    return loss if math.isfinite(loss) else math.inf
