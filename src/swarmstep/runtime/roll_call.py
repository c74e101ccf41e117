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


@dataclasses.dataclass(frozen=True)
class RankStatus:
    """What one worker says.

    `step` it is at, 0 if it has finished; `loss`, its mean training loss since the last round, +inf if it has
    none, NaN if its weights are not finite or off by orders of magnitude; the `reports` of its strategy; whether
    it wishes a round, and of which fragment.
    """

    step: int
    loss: float
    reports: tuple[float, ...]
    wish: bool
    fragment: int


@dataclasses.dataclass(frozen=True)
class RollCall:
    """The roll, whether anybody wishes a round, and of which fragment."""

    roll: Roll
    due: bool
    fragment: int
    traffic: Traffic  # that it cost


def call_roll(answer: RankStatus, comm: Metered, island: Comm | None, fragments: int) -> RollCall:
    """Gather all workers' answers: 16 bytes from each, and 8 for each report, and 8 where there are fragments.

    Where a worker is an island of ranks, these are put together first: their mean loss, and the sum of their
    reports.

    Raises:
        CollectiveMismatch: the workers, or the ranks of an island, are at different steps.
    """
    row = [answer.step if answer.wish else -answer.step, answer.loss, *answer.reports]
    if fragments > 1:
        row.insert(2, answer.fragment if answer.step else -1)
    said = torch.tensor(row, dtype=torch.float64)
    if island is not None:
        said = _of_island(island.gather(said), 2 + (fragments > 1))
    with comm.counting() as traffic:
        rows = comm.gather(said).clone()  # it outlives the round's memory
    roll = Roll(rows[:, 0].abs(), rows[:, 1], rows[:, 2 + (fragments > 1) :])
    _check_steps(roll.steps)
    fragment = int(rows[:, 2].max()) if fragments > 1 else 0
    return RollCall(roll, bool((rows[:, 0] > 0).any()), max(0, fragment), traffic)


def _of_island(rows: Tensor, head: int) -> Tensor:
    """Return the row of a worker from those of the ranks that hold its shards; a report is a sum over x."""
    _check_steps(rows[:, 0].abs())
    said = rows.sum(dim=0)
    said[0] = rows[:, 0].max() if (rows[:, 0] > 0).any() else rows[:, 0].min()
    said[1] = rows[:, 1].mean()  # NaN if any is
    said[2:head] = rows[0, 2:head]
    return said


def _check_steps(steps: Tensor) -> None:
    training = steps[steps > 0]
    if len(training) and training.min() < training.max():
        raise CollectiveMismatch(
            f"the ranks are at different steps, {[int(s) for s in steps]} in rank order (0: finished); call "
            "step() equally often on all ranks"
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
