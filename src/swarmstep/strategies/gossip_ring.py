"""Gossip on a ring: averages with the neighbours."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, NamedTuple, final

from torch import Tensor

from swarmstep.cards import CARDS, Card
from swarmstep.comm.base import Comm
from swarmstep.errors import UsageError
from swarmstep.signal import Layout, Roll, Signal
from swarmstep.strategies.base import Strategy
from swarmstep.when import NoState


class GossipRingMessage(NamedTuple):
    """This worker's weights after the round, [P]."""

    mixed: Tensor


@final
@dataclasses.dataclass(frozen=True)
class GossipRing(Strategy[NoState, GossipRingMessage]):
    """Replace every worker's weights by the average over itself and its neighbours on a ring.

    ::

        N_i = ranks i-reach .. i+reach on the ring
        x_i = sum_{j in N_i} x_j / |N_i|

    The mixing matrix is doubly stochastic, so that a round keeps the mean of all workers. Workers keep different
    weights. The model at the end is the mean.

    Args:
        reach: number of neighbours on each side, at least 1. From floor(W/2) on the graph is complete, and a round
            is an average of all.
        when: the trigger; by default every 16th step.

    Raises:
        UsageError: `reach` is below 1.

    Cost: P to each neighbour, at most 2 reach P sent by each worker (one for two workers); no memory.

    Source: Lian et al., Can Decentralized Algorithms Outperform Centralized Algorithms?, arXiv 1705.09056, whose
    experiments are on a ring with weights of 1/3 (from memory). There gossip and gradient step are one update;
    here gossip follows the local steps. The weight of a neighbour that has finished its data goes to the worker
    itself.
    """

    card: ClassVar[Card] = CARDS["gossip-ring"]

    reach: int = 1

    def __post_init__(self) -> None:
        if self.reach < 1:
            raise UsageError(f"reach: expected at least 1, found {self.reach}")

    def init(self, x: Tensor, layout: Layout, comm: Comm) -> NoState:
        return NoState()

    def exchange(self, x: Tensor, state: NoState, signal: Signal, roll: Roll, comm: Comm) -> GossipRingMessage:
        rank, size = comm.rank, comm.size
        offsets = range(1, size) if 2 * self.reach >= size else [*range(1, self.reach + 1), *range(-self.reach, 0)]
        mixed, absent, received = x.clone(), not roll.present[rank], 0
        for offset in offsets:
            neighbour = comm.permute(x, [(i - offset) % size for i in range(size)])
            if not roll.present[(rank - offset) % size]:
                continue
            received += 1
            # A worker that does not take part ends with the mean of its neighbours, without its own weights.
            share = 1.0 / received if absent else 1.0 / (len(offsets) + 1)
            mixed.add_(neighbour - (mixed if absent else x), alpha=share)
        return GossipRingMessage(mixed)

    def apply(self, x: Tensor, state: NoState, message: GossipRingMessage, layout: Layout) -> None:
        x.copy_(message.mixed)

    def consensus(self, x: Tensor, message: GossipRingMessage) -> Tensor:
        return message.mixed
