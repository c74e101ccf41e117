"""GASLoC: an outer Nesterov optimizer without an all-reduce, each worker mixing with its neighbours on a graph."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, NamedTuple, final

from torch import Tensor

from swarmstep.cards import CARDS, Card
from swarmstep.comm.base import Comm
from swarmstep.errors import UsageError
from swarmstep.ownership import Own
from swarmstep.signal import Layout, Roll, Signal
from swarmstep.strategies.base import Strategy, check_range
from swarmstep.strategies.parts.named_graphs import NONE, check_spec, graph_of_round
from swarmstep.when import Every, When


class GASLoCState(NamedTuple):
    """Where a worker's local steps began, and what its momentum is taken from."""

    anchor: Own  # x_i [P]
    previous: Own  # y_i of the last round, mixed [P]
    base: Own  # x_i after the overlapped mix [P]; [1] without one, of no use


class GASLoCMessage(NamedTuple):
    """This worker's y_i after the blocking mix, and of the buffers, [P]."""

    mixed: Tensor


@final
@dataclasses.dataclass(frozen=True)
class GASLoC(Strategy[GASLoCState, GASLoCMessage]):
    """Take an outer step of one's own, mix with the neighbours on a graph, and go on by Nesterov's momentum.

    ::

        D_i = x_i - (weights after the local steps)
        b_i = sum_j k_ij x_j                     while the local steps compute; without `overlapped` b_i = x_i
        y_i = b_i - s D_i
        y_i = y_i + a (sum_j h_ij y_j - y_i)     blocking
        x_i = y_i + w (y_i - y_i of the last round)

    H and K are the doubly stochastic matrices of the two graphs, so that the workers' mean moves as in DiLoCo
    whatever they are; a (H - 1) is a step along the graph's Laplacian. On the complete graph this is DiLoCo; with
    s = 1, w = 0 it is gossip; with random pairs and w = 0 NoLoCo (with its g = 1 and b = 0). Workers keep
    different weights; buffers take the blocking mix, without momentum. The model at the end is the mean of x_i,
    without the local steps after the last round.

    Args:
        lr: s, of the outer optimizer, 0 to 10.
        momentum: w, 0 to 0.9999.
        graph: of the blocking mix: pairs (random ones, anew in each round), ring, ring:DEGREE, exponential,
            hypercube, torus, complete; or none, with an overlapped mix.
        share: a, of the mix, 0 to 1.
        overlapped: the graph of a mix that travels while the next local steps compute; any of the above but
            pairs, or none. Neither in elastic groups nor with fragments.
        when: the trigger; by default every 50th step.

    Raises:
        UsageError: an argument is out of its range, or there is no graph; in a group, a degree that does not go
            with its size.

    Cost: P to each neighbour a round and graph; one all-reduce on a complete one. Memory: x_i and y_i, 2 P; 3 P
    with an overlapped mix.

    Source: Cagnasso, Belilovsky, Oyallon, GASLoC, arXiv 2606.11081, and for the overlapped mix Koneputugodage et
    al., Factored Gossip DiLoCo, arXiv 2606.22768, both known to us second hand, by their update rules only. Ours:
    that the momentum is taken from y after the mix (from y before it, the complete graph would not be DiLoCo);
    that the blocking mix is of y and not of D_i alone where there is an overlapped one; the defaults; the weights
    of the matrices (Metropolis and Hastings); and that the share of a worker that has finished its data goes to
    its neighbour itself.
    """

    card: ClassVar[Card] = CARDS["gasloc"]

    lr: float = 0.7
    momentum: float = 0.6
    graph: str = "pairs"
    share: float = 1.0
    overlapped: str = NONE
    when: When = dataclasses.field(default=Every(50), kw_only=True)

    def __post_init__(self) -> None:
        check_range("lr", self.lr, 0.0, 10.0)
        check_range("momentum", self.momentum, 0.0, 0.9999)
        check_range("share", self.share, 0.0, 1.0)
        check_spec("graph", self.graph, changing=True)
        check_spec("overlapped", self.overlapped)
        if self.graph == self.overlapped == NONE:
            raise UsageError("graph, overlapped: none; expected one graph at least")

    @property
    def follows_up(self) -> bool:
        return self.overlapped != NONE

    def init(self, x: Tensor, layout: Layout, comm: Comm) -> GASLoCState:
        return GASLoCState(x.clone(), x.clone(), x.clone() if self.follows_up else x.new_zeros(1))

    def exchange(self, x: Tensor, state: GASLoCState, signal: Signal, roll: Roll, comm: Comm) -> GASLoCMessage:
        n = signal.layout.parameters
        y = x.clone()
        base = state.base if self.follows_up else state.anchor
        y[:n].sub_(state.anchor[:n]).mul_(self.lr).add_(base[:n])
        graph = graph_of_round(self.graph, comm.size, signal.seed, signal.step)
        mixed = graph.mix(y, comm, roll.present.tolist())
        return GASLoCMessage(mixed if self.share == 1.0 else y.lerp_(mixed, self.share))

    def apply(self, x: Tensor, state: GASLoCState, message: GASLoCMessage, layout: Layout) -> None:
        n, mixed = layout.parameters, message.mixed
        state.anchor.copy_(mixed)
        state.anchor[:n].add_(mixed[:n] - state.previous[:n], alpha=self.momentum)
        state.previous.copy_(mixed)
        x.copy_(state.anchor)

    def follow_up(self, state: GASLoCState, layout: Layout, comm: Comm) -> GASLoCState:
        """Mix the anchors while the next local steps compute."""
        return state._replace(base=graph_of_round(self.overlapped, comm.size, 0, 0).mix(state.anchor, comm))

    def consensus(self, x: Tensor, message: GASLoCMessage) -> Tensor:
        return message.mixed

    def result(self, x: Tensor, state: GASLoCState, comm: Comm) -> Tensor:
        return comm.mean(state.anchor)[0]
