"""Gossip on the exponential graph, one peer a round."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, NamedTuple, final

import torch
from torch import Tensor

from swarmstep.cards import CARDS, Card
from swarmstep.comm.base import Comm
from swarmstep.ownership import Shared
from swarmstep.signal import Layout, Roll, Signal
from swarmstep.strategies.base import Strategy


class GossipExponentialState(NamedTuple):
    """Whose turn it is."""

    rounds: Shared  # int64 []: rounds so far


class GossipExponentialMessage(NamedTuple):
    """The message: this worker's weights after the round, [P]."""

    mixed: Tensor


@final
@dataclasses.dataclass(frozen=True)
class GossipExponential(Strategy[GossipExponentialState, GossipExponentialMessage]):
    """Average with one peer, at a distance that doubles from round to round.

    ::

        d   = 2 ** (round mod ceil(log2 W))           round = 0, 1, 2, ...
        x_i = (x_i + x_{i-d}) / 2

    Each round sends to one peer and receives from another; its weights are doubly stochastic, so that the mean
    of all workers stays. With W a power of two, log2 W rounds without training in between are the average of
    all. Workers keep different weights. The model at the end is the mean.

    Args:
        when: the trigger; the default is each 16th step.

    Cost: P to one peer a round; no memory.

    Source: Assran, Loizou, Ballas, Rabbat, Stochastic Gradient Push for Distributed Deep Learning, arXiv
    1811.10792, has this graph with one peer a round; Ying et al., arXiv 2110.13363, show what it averages. Here
    the rounds are synchronous and doubly stochastic, so no push-sum weights are needed. A worker whose peer has
    finished its data keeps its weights in that round, and the mean of the others then shifts a little.
    """

    card: ClassVar[Card] = CARDS["gossip-exponential"]

    def init(self, x: Tensor, layout: Layout, comm: Comm) -> GossipExponentialState:
        return GossipExponentialState(torch.tensor(0))

    def exchange(
        self, x: Tensor, state: GossipExponentialState, signal: Signal, roll: Roll, comm: Comm
    ) -> GossipExponentialMessage:
        if comm.size == 1:
            return GossipExponentialMessage(x.clone())
        distance = 2 ** (int(state.rounds) % (comm.size - 1).bit_length())
        theirs = comm.permute(x, [(i - distance) % comm.size for i in range(comm.size)])
        if not roll.present[(comm.rank - distance) % comm.size]:
            return GossipExponentialMessage(x.clone())
        if not roll.present[comm.rank]:
            return GossipExponentialMessage(theirs)
        return GossipExponentialMessage(theirs.add_(x).mul_(0.5))

    def apply(
        self, x: Tensor, state: GossipExponentialState, message: GossipExponentialMessage, layout: Layout
    ) -> None:
        x.copy_(message.mixed)
        state.rounds.add_(1)

    def consensus(self, x: Tensor, message: GossipExponentialMessage) -> Tensor:
        return message.mixed
