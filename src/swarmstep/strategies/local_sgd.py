"""Local SGD: the weights are averaged every n steps."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, NamedTuple, final

from torch import Tensor

from swarmstep.cards import CARDS, Card
from swarmstep.comm.base import Comm
from swarmstep.signal import Layout, Roll, Signal
from swarmstep.strategies.base import Strategy
from swarmstep.when import NoState


class LocalSGDMessage(NamedTuple):
    """The mean of the workers' vectors, [P]."""

    mean: Tensor


@final
@dataclasses.dataclass(frozen=True)
class LocalSGD(Strategy[NoState, LocalSGDMessage]):
    """Replace every worker's weights by the mean of all: x_i = mean_j x_j.

    The states of the inner optimizers (momentum) stay local. The model at the end is the mean.

    Args:
        when: the trigger; by default every 16th step.

    Cost: one all-reduce of P a round, 2 (W-1)/W P sent by each worker; no memory.

    Source: Stich, Local SGD Converges Fast and Communicates Little, arXiv 1805.09767, Algorithm 1.
    """

    card: ClassVar[Card] = CARDS["local-sgd"]

    @property
    def common(self) -> str:
        return "weights"

    def init(self, x: Tensor, layout: Layout, comm: Comm) -> NoState:
        return NoState()

    def exchange(self, x: Tensor, state: NoState, signal: Signal, roll: Roll, comm: Comm) -> LocalSGDMessage:
        return LocalSGDMessage(comm.mean(x, roll.weight(comm.rank))[0])

    def apply(self, x: Tensor, state: NoState, message: LocalSGDMessage, layout: Layout) -> None:
        x.copy_(message.mean)

    def consensus(self, x: Tensor, message: LocalSGDMessage) -> Tensor:
        return message.mean
