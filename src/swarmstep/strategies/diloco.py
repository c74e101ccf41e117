"""DiLoCo: an outer Nesterov optimizer on the step of the mean."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, NamedTuple, final

import torch
from torch import Tensor

from swarmstep.cards import CARDS, Card
from swarmstep.comm.base import Comm
from swarmstep.ownership import Shared
from swarmstep.signal import Layout, Roll, Signal
from swarmstep.strategies.base import Strategy, check_choice, check_range
from swarmstep.strategies.parts.blocks import squared_distance
from swarmstep.strategies.parts.outer_settings import outer_settings
from swarmstep.strategies.parts.outer_step import FIXED, KINDS, OuterStep
from swarmstep.when import Every, When


class DiLoCoState(NamedTuple):
    """The common model between two rounds, and the outer optimizer's state."""

    anchor: Shared  # x [P]
    velocity: Shared  # u [P], zero for buffers
    radius: Shared  # float64 []: r, of a measured reach


class DiLoCoMessage(NamedTuple):
    """What a round brings."""

    mean: Tensor  # of the workers' vectors, [P]
    share: Tensor  # t, float64 []
    radius: Tensor
    lr: Tensor  # s, float64 []
    momentum: Tensor  # w, float64 []


@final
@dataclasses.dataclass(frozen=True)
class DiLoCo(Strategy[DiLoCoState, DiLoCoMessage]):
    """Use the step of the workers' mean as the gradient of an outer SGD with Nesterov momentum.

    ::

        g = x - mean_i x_i
        u = w u + g
        x = x - s (g + w u)
        x_i = x

    The outer optimizer is torch.optim.SGD(lr=s, momentum=w, nesterov=True). Buffers take the mean, without
    momentum. The model at the end is x, without the local steps after the last round.

    Args:
        lr: s, of the outer optimizer, 0 to 10; None: by the number of workers, 0.7 for 1, 0.9 for 2, 1 from 16 on,
            and in between by the logarithm, which is ours (`outer_settings`).
        momentum: w, of the outer optimizer, 0 to 0.9999; None: likewise, 0.6 for 1, 0.8 for 2, 0.9 from 16 on.
        reach: "fixed", as in the paper; "measured", the step is shortened to what the workers have just gone
            themselves (`outer_step.py`, ours), which costs 8 bytes more a worker in the roll call.
        when: the trigger; by default every 500th step.

    Raises:
        UsageError: an argument is out of its range.

    Cost: one all-reduce of P a round, 2 (W-1)/W P sent by each worker. Memory: x and u, 2 P.

    Source: Douillard et al., DiLoCo: Distributed Low-Communication Training of Language Models, arXiv
    2311.08105, Algorithm 1, with Nesterov as the outer optimizer, lr 0.7, momentum 0.9, n = 500. The inner
    optimizer, there AdamW, is the caller's; its state stays local, as there.
    """

    card: ClassVar[Card] = CARDS["diloco"]

    lr: float | None = 0.7
    momentum: float | None = 0.9
    reach: str = "fixed"
    when: When = dataclasses.field(default=Every(500), kw_only=True)

    def __post_init__(self) -> None:
        if self.lr is not None:
            check_range("lr", self.lr, 0.0, 10.0)
        if self.momentum is not None:
            check_range("momentum", self.momentum, 0.0, 0.9999)
        check_choice("reach", self.reach, KINDS)

    @property
    def common(self) -> str:
        return "weights"

    def init(self, x: Tensor, layout: Layout, comm: Comm) -> DiLoCoState:
        return DiLoCoState(x.clone(), torch.zeros_like(x), torch.tensor(1.0, dtype=torch.float64))

    def report(self, x: Tensor, state: DiLoCoState, layout: Layout) -> tuple[float, ...]:
        """Return the squared length of this worker's step since the last round, where the reach is measured."""
        n = layout.parameters
        return (squared_distance(x[:n], state.anchor[:n]),) if self.reach == "measured" else ()

    def step_of(self, workers: int) -> OuterStep:
        """Return the outer step among so many workers."""
        found = outer_settings(workers)
        lr, momentum = self.lr, self.momentum
        return OuterStep(found.lr if lr is None else lr, found.momentum if momentum is None else momentum)

    def exchange(self, x: Tensor, state: DiLoCoState, signal: Signal, roll: Roll, comm: Comm) -> DiLoCoMessage:
        mean, _ = comm.mean(x, roll.weight(comm.rank))
        step = self.step_of(comm.size)
        reach = step.reach(self.reach, state, mean, roll.weight, roll, signal)
        values = (*reach, step.social, step.inertia)
        return DiLoCoMessage(mean, *(torch.tensor(value, dtype=torch.float64) for value in values))

    def alone(self, x: Tensor, state: DiLoCoState, workers: int) -> DiLoCoMessage:
        step = self.step_of(workers)
        share, lr, momentum = torch.tensor([FIXED.share, step.social, step.inertia], dtype=torch.float64)
        return DiLoCoMessage(state.anchor.lerp(x, 1 / workers), share, state.radius, lr, momentum)

    def apply(self, x: Tensor, state: DiLoCoState, message: DiLoCoMessage, layout: Layout) -> None:
        step = OuterStep(float(message.lr), float(message.momentum))
        step.apply(x, state, message.mean, message.share, layout)
        state.radius.copy_(message.radius)

    def consensus(self, x: Tensor, message: DiLoCoMessage) -> Tensor:
        return message.mean

    def result(self, x: Tensor, state: DiLoCoState, comm: Comm) -> Tensor:
        return state.anchor.clone()
