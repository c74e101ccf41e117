"""NoLoCo: an outer optimizer with momentum and random partners, without an all-reduce."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, NamedTuple, final

import torch
from torch import Tensor

from swarmstep.cards import CARDS, Card
from swarmstep.comm.base import Comm
from swarmstep.ownership import Own
from swarmstep.signal import Layout, Roll, Signal
from swarmstep.strategies.base import Strategy, check_range
from swarmstep.strategies.parts.named_graphs import pairs
from swarmstep.when import Every, When


class NoLoCoState(NamedTuple):
    """A worker's own anchor, and the state of its outer optimizer."""

    anchor: Own  # z_i [P]
    velocity: Own  # u_i [P], zero for buffers


class NoLoCoMessage(NamedTuple):
    """The pair's mean of x + (g/a - 1) z, and of the buffers, [P]."""

    mean: Tensor


@final
@dataclasses.dataclass(frozen=True)
class NoLoCo(Strategy[NoLoCoState, NoLoCoMessage]):
    """Average with a random partner, and follow the average with an outer optimizer with momentum.

    ::

        mean: over worker i and its partner in this round
        u_i = b u_i + a mean(x - z) + g (mean(z) - z_i)
        z_i = z_i + u_i
        x_i = z_i

    Since a mean(x - z) + g mean(z) = a mean(x + (g/a - 1) z), one vector is sent, not two. The pairs are a
    function of (seed, step); with an odd number of workers one is its own partner. Workers keep different weights;
    buffers take the pair's mean, without momentum. The model at the end is the mean of the workers.

    Args:
        lr: a, of the outer optimizer, 0.001 to 10.
        momentum: b, 0 to 0.9999.
        gossip: g, the pull toward the pair's mean anchor, 0 to 10; None means a.
        when: the trigger; by default every 50th step.

    Raises:
        UsageError: an argument is out of its range.

    Cost: one vector of P sent to the partner a round. Memory: z_i and u_i, 2 P.

    Source: Kolehmainen, Blagoev, Donaghy, Ersoy, Nies, NoLoCo, arXiv 2506.10911; update and defaults as in the
    authors' code, without their random routing between pipeline stages. A worker whose partner has finished its
    data goes on alone in that round. Weighting the pair's mean is ours.
    """

    card: ClassVar[Card] = CARDS["noloco"]

    lr: float = 0.7
    momentum: float = 0.5
    gossip: float | None = None
    when: When = dataclasses.field(default=Every(50), kw_only=True)

    def __post_init__(self) -> None:
        check_range("lr", self.lr, 0.001, 10.0)
        check_range("momentum", self.momentum, 0.0, 0.9999)
        if self.gossip is not None:
            check_range("gossip", self.gossip, 0.0, 10.0)

    @property
    def _ratio(self) -> float:
        """g/a, the share of the anchor in the vector that is sent."""
        return 1.0 if self.gossip is None else self.gossip / self.lr

    def init(self, x: Tensor, layout: Layout, comm: Comm) -> NoLoCoState:
        return NoLoCoState(x.clone(), torch.zeros_like(x))

    def exchange(self, x: Tensor, state: NoLoCoState, signal: Signal, roll: Roll, comm: Comm) -> NoLoCoMessage:
        n = signal.layout.parameters
        sent = x.clone()
        sent[:n].add_(state.anchor[:n], alpha=self._ratio - 1.0)
        partners = pairs(signal.seed, signal.step, comm.size)
        received = comm.permute(sent, partners)
        own, other = roll.weight(comm.rank), roll.weight(partners[comm.rank])
        if not other:
            return NoLoCoMessage(sent)
        if not own:
            return NoLoCoMessage(received)
        if own == other:
            return NoLoCoMessage(sent.add_(received).mul_(0.5))
        return NoLoCoMessage(sent.mul_(own).add_(received.mul_(other)).div_(own + other))

    def apply(self, x: Tensor, state: NoLoCoState, message: NoLoCoMessage, layout: Layout) -> None:
        n = layout.parameters
        anchor, u = state.anchor[:n], state.velocity[:n]
        u.mul_(self.momentum).add_(message.mean[:n] - self._ratio * anchor, alpha=self.lr)
        anchor.add_(u)
        state.anchor[n:] = message.mean[n:]
        x.copy_(state.anchor)

    def consensus(self, x: Tensor, message: NoLoCoMessage) -> Tensor:
        return message.mean
