"""Weights that go on while a round travels: from where, and how they and the round come together."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from swarmstep.checkpoint import fields
from swarmstep.runtime.pending_round import PendingRound
from swarmstep.runtime.round_context import RoundContext
from swarmstep.signal import Layout
from swarmstep.strategies.base import Strategy


class Live(NamedTuple):
    """The live weights of a fragment.

    Args:
        context: of all fragments.
        part: which one.
        layout: of it.
    """

    context: RoundContext
    part: int
    layout: Layout

    def go_ahead(self, strategy: Strategy, state: NamedTuple, x: Tensor, ahead: Tensor) -> Tensor | None:
        """Go on from this worker's own part of the outer step; return from where, None: from x.

        Args:
            strategy: whose step.
            state: of it; not changed.
            x: where the round starts, and the weights are.
            ahead: memory for the answer.
        """
        message = strategy.alone(x, state, self.context.comm.size)
        if message is None:
            return None
        flat, n = self.context.flat, self.layout.parameters
        strategy.apply(ahead.copy_(x), state._replace(**fields.tensors(state)), message, self.layout)
        ahead[n:] = x[n:]  # what is averaged only, and buffers
        flat.close(ahead, self.part)
        return ahead if flat.exact else ahead.copy_(flat.read(self.part))

    def take_back(self, pending: PendingRound) -> None:
        """Keep the own steps only, since the round for which the weights have gone ahead does not count."""
        if pending.ahead is not None:
            flat, n = self.context.flat, self.layout.parameters
            x = flat.open(self.part)
            x[:n] += pending.x[:n] - pending.ahead[:n]
            flat.close(x, self.part)

    def merge(self, start: Tensor, end: Tensor, left_out: bool) -> None:
        """Bring what a round made of `start` into the weights, which have moved on since."""
        flat, mix = self.context.flat, self.context.options.mix
        x, n = flat.open(self.part), self.layout.parameters + self.layout.averaged
        if self.context.buffers != "local":
            x[n:] = end[n:]
        if left_out:
            x.copy_(end)
        elif mix is None:
            x[:n] += end[:n].sub_(start[:n])
        else:
            x[:n].mul_(mix).add_(end[:n], alpha=1.0 - mix)
        flat.close(x, self.part)
