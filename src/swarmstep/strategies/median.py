"""The coordinate-wise median: a robust average."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, NamedTuple, final

import torch
from torch import Tensor

from swarmstep.cards import CARDS, Card
from swarmstep.comm.base import Comm
from swarmstep.signal import Layout, Roll, Signal
from swarmstep.strategies.base import Strategy
from swarmstep.when import NoState


class CoordinateMedianMessage(NamedTuple):
    """The message: the median of the workers' vectors, [P]."""

    median: Tensor


@final
@dataclasses.dataclass(frozen=True)
class CoordinateMedian(Strategy[NoState, CoordinateMedianMessage]):
    """Replace every worker's weights by the median of all, coordinate by coordinate.

    ::

        x_i[k] = median_j x_j[k]                      the mean of the middle two of an even number

    The model at the end is the median of the workers' last weights. A worker whose weights are not finite does
    not count, and takes the median.

    Args:
        when: the trigger; the default is each 16th step.

    Cost: every worker needs all vectors: W-1 P sent by each worker a round, and W P of memory while it lasts;
    none between rounds. For a few workers only.

    Source: Yin, Chen, Ramchandran, Bartlett, Byzantine-Robust Distributed Learning: Towards Optimal
    Statistical Rates, arXiv 1803.01498, coordinate-wise median. There it is of gradients, at a server, at every
    step; here of weights after local steps.
    """

    card: ClassVar[Card] = CARDS["median"]

    @property
    def contains_not_finite(self) -> bool:
        return True

    @property
    def common(self) -> str:
        return "weights"

    def init(self, x: Tensor, layout: Layout, comm: Comm) -> NoState:
        return NoState()

    def exchange(
        self, x: Tensor, state: NoState, signal: Signal, roll: Roll, comm: Comm
    ) -> CoordinateMedianMessage:
        rows = comm.gather(x)
        return CoordinateMedianMessage(median(rows[roll.present.to(rows.device)]))

    def apply(self, x: Tensor, state: NoState, message: CoordinateMedianMessage, layout: Layout) -> None:
        x.copy_(message.median)

    def consensus(self, x: Tensor, message: CoordinateMedianMessage) -> Tensor:
        return message.median

    def result(self, x: Tensor, state: NoState, comm: Comm) -> Tensor:
        rows = comm.gather(x)
        finite = rows.isfinite().all(dim=1)
        return median(rows[finite]) if finite.any() else x.clone()


def median(rows: Tensor) -> Tensor:
    """Return the median of each column of rows [K, P]: [P]."""
    count = len(rows)
    ordered = torch.sort(rows, dim=0).values
    return (ordered[(count - 1) // 2] + ordered[count // 2]) / 2
