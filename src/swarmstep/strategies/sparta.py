"""SPARTA: a small part of the weights is averaged at each step, another part each time."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, NamedTuple, final

import torch
from torch import Tensor

from swarmstep.cards import CARDS, Card
from swarmstep.comm.base import Comm
from swarmstep.errors import UsageError
from swarmstep.seeding import generator
from swarmstep.signal import Layout, Roll, Signal
from swarmstep.strategies.base import Strategy
from swarmstep.when import Every, NoState, When


class SPARTAMessage(NamedTuple):
    """This worker's weights after the round, [P]."""

    mixed: Tensor


@final
@dataclasses.dataclass(frozen=True)
class SPARTA(Strategy[NoState, SPARTAMessage]):
    """Average each k-th weight over all workers, from an offset that is drawn anew in each round.

    ::

        o   uniform in 0 .. k-1, the same on all workers, a function of (seed, step)
        x_i[o], x_i[o + k], x_i[o + 2k], ... = mean of all workers'

    A weight is averaged in a round with probability 1/k. Workers keep different weights, and their own buffers.
    The model at the end is the mean of the workers.

    Args:
        stride: k, at least 1; 200 is 0.5 % of the weights. With 1 this is local SGD, but for buffers.
        when: the trigger; by default every step.

    Raises:
        UsageError: `stride` is below 1.

    Cost: one all-reduce of P/k a round, 2 (W-1)/W P/k sent by each worker; no memory.

    Source: Beton et al., Improving the Efficiency of Distributed Training using Sparse Parameter Averaging, 2025,
    known to us second hand: 0.05 to 0.5 % of the weights at random, at each step. There each weight is drawn by
    itself; that they lie k apart is ours, and makes the choice free of cost. With the
    outer steps of DiLoCo between it is `SPARTADiLoCo`.
    """

    card: ClassVar[Card] = CARDS["sparta"]

    stride: int = 200
    when: When = dataclasses.field(default=Every(1), kw_only=True)

    def __post_init__(self) -> None:
        if self.stride < 1:
            raise UsageError(f"stride: expected at least 1, found {self.stride}")

    @property
    def buffers(self) -> tuple[str, ...]:
        return ("local", "first")

    def init(self, x: Tensor, layout: Layout, comm: Comm) -> NoState:
        return NoState()

    def exchange(self, x: Tensor, state: NoState, signal: Signal, roll: Roll, comm: Comm) -> SPARTAMessage:
        source = generator(signal.seed, signal.step, "sparta")
        chosen = slice(
            int(torch.randint(self.stride, (), generator=source)), signal.layout.parameters, self.stride
        )
        mixed = x.clone()
        mixed[chosen] = comm.mean(x[chosen].contiguous(), roll.weight(comm.rank))[0]
        return SPARTAMessage(mixed)

    def apply(self, x: Tensor, state: NoState, message: SPARTAMessage, layout: Layout) -> None:
        x.copy_(message.mixed)

    def consensus(self, x: Tensor, message: SPARTAMessage) -> Tensor:
        return message.mixed
