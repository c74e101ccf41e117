"""BMUF: block momentum on the step of the mean."""

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


class BMUFState(NamedTuple):
    """The common model between two rounds, and its momentum."""

    anchor: Shared  # x [P]
    velocity: Shared  # u [P], zero for buffers


class BMUFMessage(NamedTuple):
    """The mean of the workers' vectors, and the block momentum for their number."""

    mean: Tensor
    momentum: Tensor  # w, float64 []


@final
@dataclasses.dataclass(frozen=True)
class BMUF(Strategy[BMUFState, BMUFMessage]):
    """Move the common model with momentum along the step of the workers' mean (blockwise model-update filtering).

    ::

        m = mean_i x_i
        u = w u + z (m - y)
        x = x + u
        y = x                          with nesterov: y = x + w u
        x_i = y

    Buffers take the mean, without momentum. The model at the end is x.

    Args:
        momentum: w, 0 to 0.9999; None means 1 - 1/W.
        block_lr: z, 0 to 10. With momentum 0 and z = 1 this is local SGD.
        nesterov: workers start from where the momentum would carry x.
        when: the trigger; by default every 16th step.

    Raises:
        UsageError: an argument is out of its range.

    Cost: one all-reduce of P a round, 2 (W-1)/W P sent by each worker. Memory: x and u, 2 P.

    Source: Chen and Huo, Scalable training of deep learning machines by incremental block training with
    intra-block parallel optimization and blockwise model-update filtering, ICASSP 2016; from memory, not checked
    against the paper. CNTK has the default w = 1 - 1/W. A block of the paper is a round here; inner optimizers
    keep their state across rounds.
    """

    card: ClassVar[Card] = CARDS["bmuf"]

    momentum: float | None = None
    block_lr: float = 1.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        if self.momentum is not None:
            check_range("momentum", self.momentum, 0.0, 0.9999)
        check_range("block_lr", self.block_lr, 0.0, 10.0)

    @property
    def common(self) -> str:
        return "weights"

    def init(self, x: Tensor, layout: Layout, comm: Comm) -> BMUFState:
        return BMUFState(x.clone(), torch.zeros_like(x))

    def exchange(self, x: Tensor, state: BMUFState, signal: Signal, roll: Roll, comm: Comm) -> BMUFMessage:
        mean, _ = comm.mean(x, roll.weight(comm.rank))
        momentum = 1.0 - 1.0 / comm.size if self.momentum is None else self.momentum
        return BMUFMessage(mean, torch.tensor(momentum, dtype=torch.float64))

    def apply(self, x: Tensor, state: BMUFState, message: BMUFMessage, layout: Layout) -> None:
        n, w = layout.parameters, float(message.momentum)
        anchor, u = state.anchor[:n], state.velocity[:n]
        start = anchor.add(u, alpha=w) if self.nesterov else anchor  # y
        step = message.mean[:n] - start
        u.mul_(w).add_(step, alpha=self.block_lr)
        anchor.add_(u)
        state.anchor[n:] = message.mean[n:]
        x.copy_(state.anchor)
        if self.nesterov:
            x[:n].add_(u, alpha=w)

    def consensus(self, x: Tensor, message: BMUFMessage) -> Tensor:
        return message.mean

    def result(self, x: Tensor, state: BMUFState, comm: Comm) -> Tensor:
        return state.anchor.clone()
