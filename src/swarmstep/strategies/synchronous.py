"""Synchronous training: the gradients are averaged at every step."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, NamedTuple, final

from torch import Tensor

from swarmstep.cards import CARDS, Card
from swarmstep.comm.base import Comm
from swarmstep.signal import Layout, Roll, Signal
from swarmstep.strategies.base import Strategy, Target
from swarmstep.when import Every, NoState, When


class SynchronousMessage(NamedTuple):
    """The mean of the workers' gradients, [number of parameters]."""

    mean: Tensor


@final
@dataclasses.dataclass(frozen=True)
class Synchronous(Strategy[NoState, SynchronousMessage]):
    """Replace every worker's gradient by the mean of all, before the optimizer's step: g_i = mean_j g_j.

    The caller calls `Synchronizer.reduce()` between `backward` and `optimizer.step`. Workers whose optimizers are
    deterministic then stay equal. Floating-point buffers stay each worker's own, and are rank 0's at the end.

    Args:
        when: the trigger; by default every step. At the steps between rounds each worker uses its own gradient.

    Cost: one all-reduce of the gradient a round, 2 (W-1)/W P sent by each worker; no memory.

    Source: data-parallel SGD, the baseline of every method here; torch's DistributedDataParallel does the same and
    overlaps the exchange with the backward pass. Here a parameter without a gradient on some rank counts as zero.
    """

    card: ClassVar[Card] = CARDS["synchronous"]
    target: ClassVar[Target] = "gradients"

    when: When = dataclasses.field(default=Every(1), kw_only=True)

    @property
    def buffers(self) -> tuple[str, ...]:
        return ("local",)

    def init(self, x: Tensor, layout: Layout, comm: Comm) -> NoState:
        return NoState()

    def exchange(self, x: Tensor, state: NoState, signal: Signal, roll: Roll, comm: Comm) -> SynchronousMessage:
        return SynchronousMessage(comm.mean(x, roll.weight(comm.rank))[0])

    def apply(self, x: Tensor, state: NoState, message: SynchronousMessage, layout: Layout) -> None:
        x.copy_(message.mean)

    def consensus(self, x: Tensor, message: SynchronousMessage) -> Tensor:
        return message.mean

    def result(self, x: Tensor, state: NoState, comm: Comm) -> Tensor:
        return comm.broadcast(x, 0)
