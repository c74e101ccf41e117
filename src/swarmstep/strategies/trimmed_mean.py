"""The coordinate-wise trimmed mean: a robust average."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from swarmstep.cards import CARDS, Card
from swarmstep.comm.base import Comm
from swarmstep.signal import Layout, Roll, Signal
from swarmstep.strategies.base import Strategy, check_range
from swarmstep.when import NoState


class TrimmedMeanMessage(NamedTuple):
    """The trimmed mean of the workers' vectors, [P]."""

    mean: Tensor


@dataclasses.dataclass(frozen=True)
class TrimmedMean(Strategy[NoState, TrimmedMeanMessage]):
    """Replace every worker's weights by the mean of all without the extremes, coordinate by coordinate.

    ::

        t      = ceil(trim W), but at most floor((W-1)/2)
        x_i[k] = mean of x_1[k] .. x_W[k] without the t smallest and the t largest

    W counts the workers that take part, each with the same weight. A worker whose weights are not finite does not
    take part, and gets the trimmed mean. The model at the end is the trimmed mean of the workers' last weights.

    Args:
        trim: the fraction cut off at each end, 0 to 0.5; 0 is the mean, 0.5 the median.
        when: the trigger; by default every 16th step.

    Raises:
        UsageError: `trim` is out of its range.

    Cost: every worker needs all vectors: (W-1) P sent by each worker a round, and W P of memory during the round;
    none between rounds. For a few workers only.

    Source: Yin, Chen, Ramchandran, Bartlett, Byzantine-Robust Distributed Learning: Towards Optimal Statistical
    Rates, arXiv 1803.01498, coordinate-wise trimmed mean: there of gradients, on a server, at every step; here of
    weights after local steps. The default of 0.25 is ours, and so is rounding up, without which a few workers
    would have no protection.
    """

    card: ClassVar[Card] = CARDS["trimmed-mean"]
    contains_not_finite: ClassVar[bool] = True

    trim: float = 0.25

    def __post_init__(self) -> None:
        check_range("trim", self.trim, 0.0, 0.5)

    @property
    def common(self) -> str:
        return "weights"

    def init(self, x: Tensor, layout: Layout, comm: Comm) -> NoState:
        return NoState()

    def exchange(self, x: Tensor, state: NoState, signal: Signal, roll: Roll, comm: Comm) -> TrimmedMeanMessage:
        rows = comm.gather(x)
        return TrimmedMeanMessage(trimmed_mean(rows[roll.present.to(rows.device)], self.trim))

    def apply(self, x: Tensor, state: NoState, message: TrimmedMeanMessage, layout: Layout) -> None:
        x.copy_(message.mean)

    def consensus(self, x: Tensor, message: TrimmedMeanMessage) -> Tensor:
        return message.mean

    def result(self, x: Tensor, state: NoState, comm: Comm) -> Tensor:
        rows = comm.gather(x)
        finite = rows.isfinite().all(dim=1)
        return trimmed_mean(rows[finite], self.trim) if finite.any() else x.clone()


def trimmed_mean(rows: Tensor, trim: float) -> Tensor:
    """Return the mean of each column of rows [K, P] without ceil(trim K) values at each end: [P]."""
    count = len(rows)
    cut = min(math.ceil(trim * count - 1e-9), (count - 1) // 2)
    return torch.sort(rows, dim=0).values[cut : count - cut].mean(dim=0)
