"""The coordinate-wise trimmed mean: a robust average."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar, NamedTuple, final

import torch
from torch import Tensor

from swarmstep.cards import CARDS, Card
from swarmstep.comm.base import Comm
from swarmstep.signal import Layout, Roll, Signal
from swarmstep.strategies.base import Strategy, check_range
from swarmstep.when import NoState


class TrimmedMeanMessage(NamedTuple):
    """The message: the trimmed mean of the workers' vectors, [P]."""

    mean: Tensor


@final
@dataclasses.dataclass(frozen=True)
class TrimmedMean(Strategy[NoState, TrimmedMeanMessage]):
    """Replace every worker's weights by the mean of all without the extremes, coordinate by coordinate.

    ::

        t      = ceil(trim W), at most (W-1)/2 rounded down
        x_i[k] = mean of x_1[k] .. x_W[k] without the t smallest and the t largest

    W counts the workers that take part. The model at the end is the trimmed mean of the workers' last weights.
    A worker whose weights are not finite does not count, and takes the trimmed mean.

    Args:
        trim: the fraction cut off at each end, 0 to 0.5; 0 is the mean, 0.5 the median.
        when: the trigger; the default is each 16th step.

    Raises:
        UsageError: `trim` is out of its range.

    Cost: every worker needs all vectors: W-1 P sent by each worker a round, and W P of memory while it lasts;
    none between rounds. For a few workers only.

    Source: Yin, Chen, Ramchandran, Bartlett, Byzantine-Robust Distributed Learning: Towards Optimal
    Statistical Rates, arXiv 1803.01498, coordinate-wise trimmed mean. There it is of gradients, at a server, at
    every step; here of weights after local steps. The default of 0.25 and rounding up, so that few workers are
    not left without protection, are ours.
    """

    card: ClassVar[Card] = CARDS["trimmed-mean"]

    trim: float = 0.25

    def __post_init__(self) -> None:
        check_range("trim", self.trim, 0.0, 0.5)

    @property
    def contains_not_finite(self) -> bool:
        return True

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
    """Return the mean of each column of rows [K, P] without ceil(trim K) at each end: [P]."""
    count = len(rows)
    cut = min(math.ceil(trim * count - 1e-9), (count - 1) // 2)
    return torch.sort(rows, dim=0).values[cut : count - cut].mean(dim=0)
