"""The roll call that opens every round: each worker reports where it is and how it is doing, to all."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from swarmstep.comm.base import Comm
from swarmstep.comm.metered import Metered, Traffic
from swarmstep.errors import CollectiveMismatch, NotFinite
from swarmstep.runtime.round_context import StepContext
from swarmstep.signal import Roll
from swarmstep.strategies.base import Strategy

GROWTH = 1000.0  # times the norm after the last round: so much only bad weights grow, or all workers' do
LEAST = 0.01  # root mean square of weights that are no measure of growth: they may start at 0

# Columns of the roll call, all float64.
ROUND, STEP, LOSS, WEIGHT = range(4)
SECONDS = slice(4, 7)  # compute, wait, send
HEAD = 7  # columns of every roll call; then the fragment, if there are several; then the strategy's reports


@dataclasses.dataclass(frozen=True)
class RankStatus:
    """What one worker reports.

    `round` is the number of the round it would open, from 1, and 0 if it has finished; `requested` says whether
    it asks for that round now. `step` counts its local steps; `loss` is its mean training loss since the last
    round, +inf if it has none, NaN if its weights are not finite; `grown` says whether they have grown by orders
    of magnitude since then; `weight` is the sum of the weights of its steps since then. `seconds` are those of its
    local steps since then, and those that its last round spent in the roll call and in the exchange. `fragment` is
    what the round would be about, `reports` what the strategy adds.
    """

    round: int
    requested: bool
    step: int
    loss: float
    grown: bool
    weight: float
    seconds: tuple[float, float, float]
    fragment: int
    reports: tuple[float, ...]

    def row(self, fragments: int) -> Tensor:
        """Return the row of the roll call.

        A round that is not requested has a negative number; weights that have grown have a negative weight.
        """
        number = self.round if self.requested else -self.round
        weight = -self.weight if self.grown else self.weight
        fragment = [self.fragment if self.round else -1] if fragments > 1 else []
        head = [number, self.step, self.loss, weight, *self.seconds]
        return torch.tensor([*head, *fragment, *self.reports], dtype=torch.float64)


@dataclasses.dataclass(frozen=True)
class RollCall:
    """The roll, whether any worker requests a round, and of which fragment."""

    roll: Roll
    due: bool
    fragment: int
    traffic: Traffic  # what it cost
    seconds: float  # how long it took this worker, until the slowest was there


def call_roll(status: RankStatus, comm: Metered, island: Comm | None, fragments: int) -> RollCall:
    """Gather the rows of all workers: 56 bytes from each, 8 more if there are fragments, and 8 for each report.

    Where a worker is an island of ranks, their rows are combined first.

    Raises:
        CollectiveMismatch: the workers are at different rounds; or the ranks of an island, or the members of an
            elastic group, at different steps.
    """
    began, head = comm.clock(), HEAD + (fragments > 1)
    row = status.row(fragments)
    if island is not None:
        row = _combined(island.gather(row), head)
    with comm.counting() as traffic:
        rows = comm.gather(row).clone()  # it outlives the round's memory
    numbers = rows[:, ROUND].abs()
    _check_equal(numbers, rows[:, ROUND] != 0, "rounds", "resume all ranks from the same checkpoint")
    if comm.elastic:
        _check_equal(rows[:, STEP], numbers > 0, "steps", "call step() equally often on all ranks")
    losses = rows[:, LOSS].masked_fill(_outgrown(rows), math.nan)
    roll = Roll(numbers, rows[:, STEP], losses, rows[:, WEIGHT].abs(), rows[:, SECONDS], rows[:, head:])
    fragment = max(0, int(rows[:, HEAD].max())) if fragments > 1 else 0
    return RollCall(roll, bool((rows[:, ROUND] > 0).any()), fragment, traffic, comm.clock() - began)


def _combined(rows: Tensor, head: int) -> Tensor:
    """Return the row of a worker from those of the ranks of its island, which hold shards of its model.

    Its loss is the mean of theirs, NaN if any is; it has grown if any has; its weight and reports are their sums;
    its seconds those of the slowest.
    """
    number = rows[:, ROUND]
    _check_equal(rows[:, STEP], number != 0, "steps", "call step() equally often on all ranks of an island")
    row = rows.sum(dim=0)
    row[ROUND] = number.max() if (number > 0).any() else number.min()
    row[STEP] = rows[:, STEP].max()
    row[LOSS] = rows[:, LOSS].mean()
    weight = rows[:, WEIGHT].abs().sum()
    row[WEIGHT] = -weight if rows[:, WEIGHT].signbit().any() else weight
    row[SECONDS] = rows[:, SECONDS].max(dim=0).values
    row[HEAD:head] = rows[0, HEAD:head]
    return row


def _check_equal(values: Tensor, training: Tensor, what: str, remedy: str) -> None:
    """Raise CollectiveMismatch unless the values of those that train are equal."""
    found = values[training]
    if len(found) and found.min() < found.max():
        listed = [int(value) if trains else "finished" for value, trains in zip(values, training, strict=True)]
        raise CollectiveMismatch(
            f"the ranks are at different {what}: expected one number, found {', '.join(map(str, listed))} in rank "
            f"order; {remedy}"
        )


def _outgrown(rows: Tensor) -> Tensor:
    """Return whose weights have grown by orders of magnitude while those of at least as many have not, bool [W].

    Where most have grown, the model leaves a start that was small beside what it is to learn. Workers that have
    finished, and may have taken few steps, are no measure for those that train.
    """
    grown, training = rows[:, WEIGHT].signbit(), rows[:, ROUND] != 0
    measure = grown[training] if training.any() else grown
    return grown & bool(2 * measure.sum() <= len(measure))


def reported_loss(loss: float, x: Tensor, parameters: int, before: float) -> tuple[float, bool]:
    """Return loss and growth as a `RankStatus` has them: NaN where x is not finite, whether it has grown too much.

    Args:
        loss: the worker's mean loss since the last round.
        x: its vector [P].
        parameters: how many of its first elements are parameters.
        before: their Euclidean norm after the last round; infinite if x may be of any finite size.
    """
    norm, buffers = float(x[:parameters].norm()), x[parameters:]
    if not math.isfinite(norm) or not (bool(buffers.sum().isfinite()) or bool(buffers.isfinite().all())):
        return math.nan, False
    measured = before >= LEAST * math.sqrt(parameters)
    return loss if math.isfinite(loss) else math.inf, measured and norm > GROWTH * before


def check_finite(roll: Roll, now: StepContext, strategy: Strategy) -> None:
    """Raise NotFinite on all ranks where weights are not finite and the strategy cannot contain that."""
    bad = roll.losses.isnan().nonzero().view(-1).tolist()
    if bad and (len(bad) == len(roll.losses) or not strategy.contains_not_finite):
        ranks = ", ".join(map(str, bad))
        what = f"weights of rank {ranks} are not finite, or {GROWTH:g} times as large as after the last round"
        if strategy.target == "gradients":
            what = f"{'weights' if now.finished else 'gradients'} of rank {ranks} are not finite"
        raise NotFinite(
            f"step {now.step}: the {what}, and {type(strategy).__name__} cannot contain that; lower the learning "
            "rate, clip gradients, or look at that rank's data"
        )
