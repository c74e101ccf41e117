"""EASGD: workers tied to a common centre by elastic strings."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, NamedTuple, final

import torch
from torch import Tensor

from swarmstep.cards import CARDS, Card
from swarmstep.comm.base import Comm
from swarmstep.ownership import Shared
from swarmstep.signal import Layout, Roll, Signal
from swarmstep.strategies.base import Strategy, check_range
from swarmstep.when import Every, When


class EASGDState(NamedTuple):
    """The centre that all workers are tied to."""

    centre: Shared  # c [P]


class EASGDMessage(NamedTuple):
    """The mean of the workers' vectors, and how far workers and centre move."""

    mean: Tensor
    pull: Tensor  # a, float64 []
    drift: Tensor  # a K, float64 []


@final
@dataclasses.dataclass(frozen=True)
class EASGD(Strategy[EASGDState, EASGDMessage]):
    """Pull every worker toward a common centre, and the centre toward the workers.

    ::

        a   = beta / W
        x_i = x_i - a (x_i - c)                       c: before the round
        c   = c + a K (mean_i x_i - c)                x_i: before the round; over the K workers that take part

    Workers keep different weights. One that has finished its data still moves toward the centre. The model at the
    end is the centre.

    Args:
        beta: W times the elasticity a, 0 to 1; 0 is independent training.
        when: the trigger; by default every 10th step.

    Raises:
        UsageError: `beta` is out of its range.

    Cost: one all-reduce of P a round, 2 (W-1)/W P sent by each worker. Memory: the centre, 1 P.

    Source: Zhang, Choromanska, LeCun, Deep learning with Elastic Averaging SGD, arXiv 1412.6651, synchronous form.
    There a worker's gradient step and its elastic step start from the same point; here the elastic step follows
    the local steps. The defaults beta = 0.9 and n = 10 are from memory of the paper; weighting the mean is ours.
    """

    card: ClassVar[Card] = CARDS["easgd"]

    beta: float = 0.9
    when: When = dataclasses.field(default=Every(10), kw_only=True)

    def __post_init__(self) -> None:
        check_range("beta", self.beta, 0.0, 1.0)

    @property
    def common(self) -> str:
        return "consensus"

    def init(self, x: Tensor, layout: Layout, comm: Comm) -> EASGDState:
        return EASGDState(x.clone())

    def exchange(self, x: Tensor, state: EASGDState, signal: Signal, roll: Roll, comm: Comm) -> EASGDMessage:
        mean, _ = comm.mean(x, roll.weight(comm.rank))
        pull = torch.tensor(self.beta / comm.size, dtype=torch.float64)
        return EASGDMessage(mean, pull, pull * int(roll.present.sum()))

    def apply(self, x: Tensor, state: EASGDState, message: EASGDMessage, layout: Layout) -> None:
        x.add_(state.centre - x, alpha=float(message.pull))
        state.centre.add_(message.mean - state.centre, alpha=float(message.drift))

    def consensus(self, x: Tensor, message: EASGDMessage) -> Tensor:
        return message.mean

    def result(self, x: Tensor, state: EASGDState, comm: Comm) -> Tensor:
        return state.centre.clone()
