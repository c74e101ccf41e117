"""SlowMo: slow momentum on top of local steps."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, NamedTuple, final

import torch
from torch import Tensor

from swarmstep.cards import CARDS, Card
from swarmstep.comm.base import Comm
from swarmstep.errors import UsageError
from swarmstep.ownership import Shared
from swarmstep.signal import Layout, Roll, Signal
from swarmstep.strategies.base import Strategy, check_range
from swarmstep.strategies.parts.rate import common_rate, common_rates


class SlowMoState(NamedTuple):
    """The common model between two rounds, and its momentum."""

    anchor: Shared  # x [P]
    velocity: Shared  # u [P], in units of a gradient, zero for buffers


class SlowMoMessage(NamedTuple):
    """The mean of the workers' vectors, and the inner learning rate."""

    mean: Tensor
    rate: Tensor  # lr, float64 [], or [P] where parameter groups differ


@final
@dataclasses.dataclass(frozen=True)
class SlowMo(Strategy[SlowMoState, SlowMoMessage]):
    """Move the common model by a slow momentum, kept in units of a gradient.

    ::

        m = mean_i x_i
        u = b u + (x - m) / lr
        x = x - a lr u
        x_i = x

    lr is the inner optimizer's learning rate at the step of the round: `Synchronizer.step(loss, lr)`; with
    `step(loss, optimizer)` that of each parameter's group. Where it is 0, u stays and x = x - a (x - m).
    Buffers take the mean, without momentum. The model at the end is x.

    Args:
        slow_lr: a, 0 to 10.
        momentum: b, 0 to 0.9999. With a = 1 and b = 0 this is local SGD.
        when: the trigger; by default every 16th step.

    Raises:
        UsageError: an argument is out of its range; in a round, no learning rate was given.

    Cost: one all-reduce of P a round, 2 (W-1)/W P sent by each worker. Memory: x and u, 2 P.

    Source: Wang, Tantia, Ballas, Rabbat, SlowMo, arXiv 1910.00643; defaults as in the authors' code
    (torchdistx). Here the base method is local steps with the mean at the end, and inner optimizers keep their
    state across rounds.
    """

    card: ClassVar[Card] = CARDS["slowmo"]

    slow_lr: float = 1.0
    momentum: float = 0.5

    def __post_init__(self) -> None:
        check_range("slow_lr", self.slow_lr, 0.0, 10.0)
        check_range("momentum", self.momentum, 0.0, 0.9999)

    @property
    def common(self) -> str:
        return "weights"

    def init(self, x: Tensor, layout: Layout, comm: Comm) -> SlowMoState:
        return SlowMoState(x.clone(), torch.zeros_like(x))

    def exchange(self, x: Tensor, state: SlowMoState, signal: Signal, roll: Roll, comm: Comm) -> SlowMoMessage:
        rate = common_rate(signal, roll, comm)
        if rate is None or not rate >= 0:
            raise UsageError(
                f"step {signal.step}: SlowMo needs the inner optimizer's learning rate, found {rate}; "
                "call Synchronizer.step(loss, lr)"
            )
        rates = common_rates(x, rate, signal, roll, comm)
        return SlowMoMessage(comm.mean(x, roll.weight(comm.rank))[0], rates)

    def apply(self, x: Tensor, state: SlowMoState, message: SlowMoMessage, layout: Layout) -> None:
        n = layout.parameters
        anchor, u = state.anchor[:n], state.velocity[:n]
        gap = anchor - message.mean[:n]
        if not message.rate.dim() and message.rate > 0:
            rate = float(message.rate)
            u.mul_(self.momentum).add_(gap, alpha=1.0 / rate)
            anchor.add_(u, alpha=-self.slow_lr * rate)
        else:
            rates = (message.rate[:n] if message.rate.dim() else message.rate).to(gap)
            u.copy_(torch.where(rates > 0, self.momentum * u + gap / rates, u))
            anchor.sub_(torch.where(rates > 0, rates * u, gap), alpha=self.slow_lr)
        state.anchor[n:] = message.mean[n:]
        x.copy_(state.anchor)

    def consensus(self, x: Tensor, message: SlowMoMessage) -> Tensor:
        return message.mean

    def result(self, x: Tensor, state: SlowMoState, comm: Comm) -> Tensor:
        return state.anchor.clone()
