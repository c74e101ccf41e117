"""What a step knows, what a round knows, and what it reports."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from torch import Tensor

from swarmstep.comm.group import KEPT, Decision
from swarmstep.console import in_bytes


@dataclass(frozen=True, slots=True)
class Layout:
    """How the flat vector x [P] is made up: parameters first, then those averaged only, then buffers.

    Strategies treat x as one vector; `sizes` lets them draw one random number for each tensor, `parameters`
    lets them leave the buffers out of a norm.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]  # elements of each tensor, in the order in which they lie in x
    parameters: int  # so many elements come first, of the parameters to which the strategy's step is applied
    averaged: int = 0  # and so many next, of parameters that are only averaged; the rest are buffers
    shapes: tuple[tuple[int, ...], ...] = ()  # of the tensors, where they are known

    @property
    def parameter_sizes(self) -> list[int]:
        """Elements of each parameter tensor."""
        return [
            size for size, end in zip(self.sizes, accumulate(self.sizes), strict=True) if end <= self.parameters
        ]

    @property
    def parameter_shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shape of each parameter tensor, where they are known."""
        return self.shapes[: len(self.parameter_sizes)]


def _itself(part: Tensor) -> Tensor:
    return part


@dataclass(frozen=True, slots=True)
class Signal:
    """What a worker knows after its local step.

    What is costly is a call, made only if asked for: `loss` (the mean training loss since the last round, in
    the loss's own unit) waits for the device, `gradient` builds a flat vector [P], `probe` runs the model
    with any flat vector [P] on the shared probe batch (None where no probe was given). It returns the losses
    of the n examples, [n] float64 on the CPU; [1], their mean, where the user's function gives no more. `total`
    adds up a tensor over the shards of this worker's model; where the model is whole it returns its argument.
    """

    step: int  # 1-based count of local steps
    seed: int
    lr: float | None  # of the inner optimizer, where the caller told; the highest of its parameter groups
    loss: Callable[[], float]
    gradient: Callable[[], Tensor]
    probe: Callable[[Tensor], Tensor] | None
    layout: Layout
    probe_cost: float = 0.0  # of one call of `probe`, in local steps
    rank: int = 0  # of this worker, for triggers that differ from rank to rank
    seconds: float = 0.0  # that this worker spent outside of the Synchronizer since the last round
    rates: Callable[[], Tensor] | None = None  # the lr of each element, [P]; None where all are `lr`
    total: Callable[[Tensor], Tensor] = _itself
    weights: Callable[[], Tensor] | None = (
        None  # this worker's, [P], to be read at once; None outside of a Synchronizer
    )


@dataclass(frozen=True, slots=True)
class Roll:
    """The roll call that opens every round: one row from each worker, the same on all ranks; float64.

    `rounds` [W], the number of the round that each worker is at, from 1, and 0 for one that has finished its data;
    `steps` [W], how many local steps it has taken; `losses` [W], its mean training loss since the last round,
    +inf where it has none, NaN where its weights are not finite; `weights` [W], the sum of the weights of its
    steps since the last round; `seconds` [W, 3], what it spent computing since the last round, and waiting and
    sending in that round; `reports` [W, k], the strategy's `report` of each rank.
    """

    rounds: Tensor
    steps: Tensor
    losses: Tensor
    weights: Tensor
    seconds: Tensor
    reports: Tensor

    @property
    def present(self) -> Tensor:
        """Which workers take part, bool [W]: not finished, and with finite weights."""
        return (self.rounds > 0) & ~self.losses.isnan()

    @property
    def step(self) -> int:
        """The step of the round: the largest number of steps that a worker which takes part has taken."""
        return int(self.steps[self.present if self.present.any() else self.rounds > 0].max())

    def weight(self, rank: int) -> float:
        """Return the weight of a worker in the round: 1 for the largest of those present, 0 for one that is not.

        Equal weights are exactly 1, also where all are 0.
        """
        present = self.present
        largest = float(self.weights[present].max()) if present.any() else 0.0
        if not present[rank]:
            return 0.0
        return float(self.weights[rank]) / largest if largest else 1.0


@dataclass(frozen=True, slots=True)
class Distrust:
    """A worker that a strategy leaves out: which, since which step, and why in words."""

    rank: int
    since: int
    why: str


@dataclass(frozen=True, slots=True)
class Round:
    """What a round did.

    `step` is the largest number of steps that a worker had taken when it started; `fragment` is the part of the
    model it was about, 0 if there is one. `participants` is how many workers took part. In rank order, of the time
    since the round before: `losses` are the workers' mean training losses (+inf: has none), `weights` the weights
    of their steps, `compute_seconds` what they spent on local steps; `wait_seconds` and `send_seconds` are what
    they spent in the round before, waiting for the slowest in the roll call and exchanging vectors. `bytes_sent`
    and `bytes_received` are this worker's payload, and `calls` what it was sent by: (verb, bytes of the tensor
    that this worker gave to it, size of its group); `followed` are those of the round before that went on during
    this step, whose bytes are counted here. `seconds` are what the training spent on it, by the group's
    clock: in real processes they include the wait for the others, in simulation they are this worker's own;
    `probe_seconds` went into the probe. `distrusted` are the workers that the strategy left out. In an elastic
    group `members` are the names of all in it, in rank order, `epoch` is the number of the group, and `decision`
    what they decided besides that the round counts. `number` counts the rounds of the whole run, from 1.
    """

    step: int
    strategy: str
    fragment: int
    participants: int
    losses: tuple[float, ...]
    weights: tuple[float, ...]
    compute_seconds: tuple[float, ...]
    wait_seconds: tuple[float, ...]
    send_seconds: tuple[float, ...]
    bytes_sent: int
    bytes_received: int
    calls: tuple[tuple[str, int, int], ...]
    seconds: float
    probe_seconds: float
    distrusted: tuple[Distrust, ...]
    epoch: int = 0
    members: tuple[str, ...] = ()
    decision: Decision = KEPT
    number: int = 0
    followed: tuple[tuple[str, int, int], ...] = ()

    def __str__(self) -> str:
        losses = [loss for loss in self.losses if math.isfinite(loss)]
        loss = f", mean loss {sum(losses) / len(losses):.4g}" if losses else ""
        left_out = f", without rank {', '.join(str(worker.rank) for worker in self.distrusted)}"
        return (
            f"round {self.number} at step {self.step}: {self.strategy} of {self.participants} of "
            f"{len(self.losses)} workers{left_out if self.distrusted else ''}{loss}, "
            f"{in_bytes(self.bytes_sent)} sent, {self.seconds:.3g} s"
        )


@dataclass(frozen=True, slots=True)
class MembershipChange:
    """A change of membership in an elastic group, as every member sees it.

    `step` is how many steps all members have taken, `committed` the step of the last round that counts: what a
    lost worker did after it is lost; `rounds` how many rounds the run has behind it. `epoch` is the number of the
    new group, and `sources`, `names` and `rank` are its. `newcomer` says whether this worker is one. `states`
    are copies of the strategy's, one for each fragment. `seconds` is what the change took this worker.

    A newcomer also gets what the member it took its state from had not returned yet, before its own: changes with
    rank -1, since it was not in those groups, and rounds without its name among their `members`. What both have as
    `Options.stateful` follows these alike.
    """

    step: int
    committed: int
    rounds: int
    epoch: int
    sources: tuple[int | None, ...]
    names: tuple[str, ...]
    rank: int
    newcomer: bool
    states: tuple[NamedTuple, ...]
    seconds: float


Event = Round | MembershipChange  # what `Synchronizer.step` and `Synchronizer.events` return
