"""No communication: the baseline below everything."""

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

    A round, should a trigger start one, only calls the roll. The model at the end is each worker's own, so
    what is reported is the mean of the workers' metrics, not the metrics of a mean.

    Cost: nothing a round; no memory.
    """

    card: ClassVar[Card] = CARDS["independent"]

    when: When = dataclasses.field(default=Never(), kw_only=True)

    @property
    def buffers(self) -> tuple[str, ...]:
        return ("local",)

    @property
    def contains_not_finite(self) -> bool:
        return True

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
