"""The coordinate-wise median: a robust average."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, final

from swarmstep.cards import CARDS, Card
from swarmstep.strategies.trimmed_mean import TrimmedMean


@final
@dataclasses.dataclass(frozen=True)
class CoordinateMedian(TrimmedMean):
    """Replace every worker's weights by the median of all, coordinate by coordinate.

    ::

        x_i[k] = median_j x_j[k]                      the mean of the middle two of an even number

    This is the trimmed mean that leaves only the middle. A worker whose weights are not finite does not take part,
    and gets the median. The model at the end is the median of the workers' last weights.

    Args:
        trim: 0.5, the median; as in `TrimmedMean`.

    Cost: every worker needs all vectors: (W-1) P sent by each worker a round, and W P of memory during the round;
    none between rounds. For a few workers only.

    Source: Yin, Chen, Ramchandran, Bartlett, Byzantine-Robust Distributed Learning: Towards Optimal Statistical
    Rates, arXiv 1803.01498, coordinate-wise median: there of gradients, on a server, at every step; here of
    weights after local steps.
    """

    card: ClassVar[Card] = CARDS["median"]

    trim: float = 0.5
