"""SPARTA between the rounds of DiLoCo: a few weights are averaged often, an outer step is taken rarely."""

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
from swarmstep.strategies.base import Strategy
from swarmstep.strategies.diloco import DiLoCo
from swarmstep.strategies.parts.outer_step import OuterStep
from swarmstep.strategies.sparta import SPARTA
from swarmstep.when import Every, NoState, When


class SPARTADiLoCoState(NamedTuple):
    """The common model after the last outer step, the outer optimizer's state, and the number of rounds."""

    anchor: Shared  # x [P]
    velocity: Shared  # u [P], zero for buffers
    rounds: Shared  # int64 []: rounds so far


class SPARTADiLoCoMessage(NamedTuple):
    """What a round brings."""

    mixed: Tensor  # this worker's weights after SPARTA's round; the mean of all workers in DiLoCo's; [P]
    lr: Tensor  # s, float64 []
    momentum: Tensor  # w, float64 []


@final
@dataclasses.dataclass(frozen=True)
class SPARTADiLoCo(Strategy[SPARTADiLoCoState, SPARTADiLoCoMessage]):
    """Take SPARTA's round, and in each H-th DiLoCo's.

    ::

        x_i[o], x_i[o + k], ... = mean of all workers'        round = 1, 2, 3, ...; o is drawn anew in each
        g = x - mean_i x_i                                    where round mod H = 0, in its place
        u = w u + g
        x = x - s (g + w u)
        x_i = x

    Workers keep their own buffers. The model at the end is x, without the local steps after the last outer step.

    Args:
        outer_every: H, at least 1; with 1 this is DiLoCo, but for buffers.
        stride: k, at least 1; 200 is 0.5 % of the weights.
        lr: s, of the outer optimizer, 0 to 10; None: by the number of workers, as of `DiLoCo`.
        momentum: w, of the outer optimizer, 0 to 0.9999; None: likewise.
        when: the trigger; by default every step.

    Raises:
        UsageError: an argument is out of its range.

    Cost: one all-reduce of P/k a round, in each H-th one of P: 2 (W-1)/W P (1/k + (1 - 1/k)/H) sent by each worker
    in the mean. Memory: x and u, 2 P.

    Source: Beton et al., Improving the Efficiency of Distributed Training using Sparse Parameter Averaging, 2025,
    known to us second hand: that both together do better than DiLoCo. How they are put together is ours: the outer
    step knows nothing of SPARTA's rounds, and takes the place of one.
    """

    card: ClassVar[Card] = CARDS["sparta-diloco"]

    outer_every: int = 500
    stride: int = 200
    lr: float | None = 0.7
    momentum: float | None = 0.9
    when: When = dataclasses.field(default=Every(1), kw_only=True)

    def __post_init__(self) -> None:
        if self.outer_every < 1:
            raise UsageError(f"outer_every: expected at least 1, found {self.outer_every}")
        _ = self._sparta, self._diloco  # check the other arguments

    @property
    def _sparta(self) -> SPARTA:
        return SPARTA(self.stride)

    @property
    def _diloco(self) -> DiLoCo:
        return DiLoCo(self.lr, self.momentum)

    @property
    def buffers(self) -> tuple[str, ...]:
        return self._sparta.buffers

    def init(self, x: Tensor, layout: Layout, comm: Comm) -> SPARTADiLoCoState:
        return SPARTADiLoCoState(x.clone(), torch.zeros_like(x), torch.tensor(0))

    def _is_outer(self, state: SPARTADiLoCoState) -> bool:
        """Return whether the round that follows this state is DiLoCo's."""
        return (int(state.rounds) + 1) % self.outer_every == 0

    def exchange(
        self, x: Tensor, state: SPARTADiLoCoState, signal: Signal, roll: Roll, comm: Comm
    ) -> SPARTADiLoCoMessage:
        if self._is_outer(state):
            mixed = comm.mean(x, roll.weight(comm.rank))[0]
        else:
            mixed = self._sparta.exchange(x, NoState(), signal, roll, comm).mixed
        step = self._diloco.step_of(comm.size)
        lr, momentum = torch.tensor([step.social, step.inertia], dtype=torch.float64)
        return SPARTADiLoCoMessage(mixed, lr, momentum)

    def apply(self, x: Tensor, state: SPARTADiLoCoState, message: SPARTADiLoCoMessage, layout: Layout) -> None:
        if self._is_outer(state):
            n, step = layout.parameters, OuterStep(float(message.lr), float(message.momentum))
            step.take(x[:n], state.anchor[:n], state.velocity[:n], message.mixed[:n], 1.0)
            state.anchor[n:] = message.mixed[n:]
            x[n:] = message.mixed[n:]
        else:
            x.copy_(message.mixed)
        state.rounds.add_(1)

    def consensus(self, x: Tensor, message: SPARTADiLoCoMessage) -> Tensor:
        return message.mixed

    def result(self, x: Tensor, state: SPARTADiLoCoState, comm: Comm) -> Tensor:
        return state.anchor.clone()
