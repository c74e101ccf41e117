"""No communication: the lower baseline."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, final

from torch import Tensor

from swarmstep.cards import CARDS, Card
from swarmstep.comm.base import Comm
from swarmstep.signal import Layout, Roll, Signal
from swarmstep.strategies.base import Strategy
from swarmstep.when import Never, NoState, When


@final
@dataclasses.dataclass(frozen=True)
class Independent(Strategy[NoState, NoState]):
    """Every worker trains alone: x_i = x_i.

    A round, should a trigger start one, only calls the roll. Each worker has its own model at the end, so that a
    report shows the mean of the workers' metrics, not the metrics of a mean.

    Args:
        when: the trigger; by default no rounds at all.

    Cost: nothing a round; no memory.
    """

    card: ClassVar[Card] = CARDS["independent"]
    contains_not_finite: ClassVar[bool] = True

    when: When = dataclasses.field(default=Never(), kw_only=True)

    @property
    def buffers(self) -> tuple[str, ...]:
        return ("local",)

    @property
    def one_result(self) -> bool:
        return False

    def init(self, x: Tensor, layout: Layout, comm: Comm) -> NoState:
        return NoState()

    def exchange(self, x: Tensor, state: NoState, signal: Signal, roll: Roll, comm: Comm) -> NoState:
        return NoState()

    def apply(self, x: Tensor, state: NoState, message: NoState, layout: Layout) -> None:
        pass

    def consensus(self, x: Tensor, message: NoState) -> Tensor:
        return x

    def result(self, x: Tensor, state: NoState, comm: Comm) -> Tensor:
        return x
