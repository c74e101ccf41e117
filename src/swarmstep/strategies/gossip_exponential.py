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
    """The number of rounds, which decides who the peer is."""

    rounds: Shared  # int64 []: rounds so far


class GossipExponentialMessage(NamedTuple):
    """This worker's weights after the round, [P]."""

    mixed: Tensor


@final
@dataclasses.dataclass(frozen=True)
class GossipExponential(Strategy[GossipExponentialState, GossipExponentialMessage]):
    """Average with one peer, whose distance doubles from round to round.

    ::

        d   = 2 ** (round mod ceil(log2 W))           round = 0, 1, 2, ...
        x_i = (x_i + x_{i-d}) / 2

    In a round a worker sends to one peer and receives from another. The mixing matrix is doubly stochastic, so
    that a round keeps the mean of all workers. With W a power of two, log2 W rounds without training in between
    are an average of all. Workers keep different weights. The model at the end is the mean.

    Args:
        when: the trigger; by default every 16th step.

    Cost: P to one peer a round; no memory.

    Source: Ying et al., Exponential Graph is Provably Efficient for Decentralized Deep Training, arXiv 2110.13363,
    one-peer exponential graph; Assran, Loizou, Ballas, Rabbat, Stochastic Gradient Push for Distributed Deep
    Learning, arXiv 1811.10792, introduced it. Here rounds are synchronous and doubly stochastic, so that no
    push-sum weights are needed. A worker whose peer has finished its data keeps its weights in that round, which
    shifts the mean of the others a little.
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
        received = comm.permute(x, [(i - distance) % comm.size for i in range(comm.size)])
        if not roll.present[(comm.rank - distance) % comm.size]:
            return GossipExponentialMessage(x.clone())
        if not roll.present[comm.rank]:
            return GossipExponentialMessage(received)
        return GossipExponentialMessage(received.add_(x).mul_(0.5))

    def apply(
        self, x: Tensor, state: GossipExponentialState, message: GossipExponentialMessage, layout: Layout
    ) -> None:
        x.copy_(message.mixed)
        state.rounds.add_(1)

    def consensus(self, x: Tensor, message: GossipExponentialMessage) -> Tensor:
        return message.mixed
