"""PAPA: a population that is pushed slowly toward its mean."""

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
from swarmstep.strategies.parts.rate import common_rate
from swarmstep.when import Every, When


class PAPAState(NamedTuple):
    """The learning rate that scales the push."""

    rate: Shared  # lr_0, float64 []: the highest learning rate of any round so far, 0 before the first


class PAPAMessage(NamedTuple):
    """The mean of the workers' vectors, and how far they move toward it."""

    mean: Tensor
    share: Tensor  # 1 - a, scaled, float64 []
    rate: Tensor  # lr_0 after this round, float64 []


@final
@dataclasses.dataclass(frozen=True)
class PAPA(Strategy[PAPAState, PAPAMessage]):
    """Push every worker a little toward the mean of all.

    ::

        b   = (1 - a) lr / lr_0
        x_i = (1 - b) x_i + b mean_j x_j

    Workers keep different weights. Where the caller gives no learning rate, it counts as constant. The model at
    the end is the mean, buffers included.

    Args:
        a: how much a worker keeps, 0 to 1; 0 is local SGD as long as the learning rate is constant.
        when: the trigger; by default every 10th step.

    Raises:
        UsageError: `a` is out of its range.

    Cost: one all-reduce of P a round, 2 (W-1)/W P sent by each worker; no memory.

    Source: Jolicoeur-Martineau, Gervais, Fatras, Zhang, Lacoste-Julien, PopulAtion Parameter Averaging (PAPA),
    arXiv 2304.03094; a = 0.99, n = 10 and the scaling as in the authors' code. Here lr_0 is the highest learning
    rate of the rounds so far, so that a warm-up of the learning rate does not make b exceed 1 - a. There the
    statistics of BatchNorm are re-estimated for the mean at the end, for which a strategy has no data, and the
    networks of the population differ in augmentation and regularization, which are the caller's.
    """

    card: ClassVar[Card] = CARDS["papa"]

    a: float = 0.99
    when: When = dataclasses.field(default=Every(10), kw_only=True)

    def __post_init__(self) -> None:
        check_range("a", self.a, 0.0, 1.0)

    @property
    def common(self) -> str:
        return "consensus"

    def init(self, x: Tensor, layout: Layout, comm: Comm) -> PAPAState:
        return PAPAState(torch.tensor(0.0, dtype=torch.float64))

    def exchange(self, x: Tensor, state: PAPAState, signal: Signal, roll: Roll, comm: Comm) -> PAPAMessage:
        rate = common_rate(signal, roll, comm) or 0.0
        highest = max(rate, float(state.rate))
        share = (1.0 - self.a) * (rate / highest if highest else 1.0)
        mean, _ = comm.mean(x, roll.weight(comm.rank))
        return PAPAMessage(mean, *torch.tensor([share, highest], dtype=torch.float64))

    def apply(self, x: Tensor, state: PAPAState, message: PAPAMessage, layout: Layout) -> None:
        x.lerp_(message.mean, float(message.share))
        state.rate.copy_(message.rate)

    def consensus(self, x: Tensor, message: PAPAMessage) -> Tensor:
        return message.mean
