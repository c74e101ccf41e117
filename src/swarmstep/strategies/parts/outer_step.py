"""The outer step: from the old common weights past the consensus, with momentum, and how far it may go.

::

    d = c - x                            c: the consensus; x: the common weights before the round
    v = w u + d                          u: the velocity
    x' = x + s (d + w v)                 with look-ahead, as in Nesterov's momentum
         x + s v                         without
    x = c + t (x' - c) ; u = t v

With t = 1 this is the outer step of DiLoCo, with t = 0 the mean. `measured_reach` finds t.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from swarmstep.signal import Layout, Roll, Signal
from swarmstep.strategies.parts.blocks import blocks

AGREEMENT = 0.95  # cosine of successive steps above which the radius grows
MOST = 10.0  # the largest radius
LONGEST = 2.0  # medians: the longest step of a worker that widens the radius
KINDS = ("measured", "fixed")


class Reach(NamedTuple):
    """How far an outer step goes, the same on all ranks.

    Args:
        share: t, 0 to 1: how much of the way from the consensus to the momentum's target.
        radius: r, 1 to 10, in lengths of a worker's own step; for the next round.
    """

    share: float
    radius: float


FIXED = Reach(1.0, 1.0)


class Moving(Protocol):
    """The part of a strategy's state that an outer step reads and changes."""

    @property
    def anchor(self) -> Tensor: ...  # x [P]
    @property
    def velocity(self) -> Tensor: ...  # u [P]
    @property
    def radius(self) -> Tensor: ...  # r, float64 []


@dataclasses.dataclass(frozen=True)
class OuterStep:
    """The step's hyper-parameters: `social` s, `inertia` w, and whether it looks ahead."""

    social: float
    inertia: float
    look_ahead: bool = True

    def reach(
        self,
        kind: str,
        state: Moving,
        consensus: Tensor,
        weight: Callable[[int], float],
        roll: Roll,
        signal: Signal,
    ) -> Reach:
        """Return how far the step goes, the same on all ranks.

        Args:
            kind: of KINDS.
            state: before the round.
            consensus: c [P].
            weight: of a rank in the consensus.
            roll: where the reach is measured, its first report is the squared length of each worker's step.
            signal: has the layout of x, and adds up over the shards of a model.
        """
        if kind == "fixed":
            return FIXED
        n, lengths = signal.layout.parameters, roll.reports[:, 0]
        d2 = spread(lengths, [weight(rank) for rank in range(len(lengths))])
        vectors = state.anchor[:n], state.velocity[:n], consensus[:n]
        return self.measured_reach(*vectors, d2, float(state.radius), signal.total)

    def apply(self, x: Tensor, state: Moving, consensus: Tensor, share: Tensor, layout: Layout) -> None:
        """Move the parameters in x and the state; buffers take the consensus, without momentum."""
        n = layout.parameters
        self.take(x[:n], state.anchor[:n], state.velocity[:n], consensus[:n], float(share))
        state.anchor[n:] = consensus[n:]
        x[n:] = consensus[n:]

    def take(self, x: Tensor, anchor: Tensor, velocity: Tensor, consensus: Tensor, share: float) -> None:
        """Move x, the anchor and the velocity, all [P], in place."""
        for block in blocks(x):
            mean, old = consensus[block], anchor[block]
            d = mean - old
            v = velocity[block].mul_(self.inertia).add_(d)
            old.add_(d.add_(v, alpha=self.inertia) if self.look_ahead else v, alpha=self.social)
            if share < 1:
                torch.lerp(mean, old, share, out=old)
                v.mul_(share)
            x[block].copy_(old)

    def measured_reach(
        self,
        anchor: Tensor,
        velocity: Tensor,
        consensus: Tensor,
        spread: float,
        radius: float,
        total: Callable[[Tensor], Tensor],
    ) -> Reach:
        """Return the reach of a step that leaves the consensus no further behind than the workers have just gone.

        ::

            g = cos(d, u)                        0 where u = 0
            r = clip(r exp(g - 0.95), 1, 10)
            k = x' - c                           what the momentum adds to the mean
            t = the largest t in [0, 1] with |d + t k|^2 <= max(r^2 D2, d.d)

        D2 is the mean square length of the workers' own steps (`spread`): a radius that they have just tried, in
        the task's own units, which follows learning rate, model and schedule. Where they agree, as in the first
        rounds, it is |d|, and the step is the mean's; where they differ it is up to sqrt(W) |d|. What is not moved
        is forgotten: u = t v. If one step after another goes the same way, r grows, by 5 % a round at most.

        Args:
            anchor: x [P], the parameters before the round.
            velocity: u [P].
            consensus: c [P].
            spread: D2, over the workers in the consensus, with their weights.
            radius: r after the last round; 1 at first.
            total: adds up a tensor over the shards of this worker's model.
        """
        dd, uu, du = total(_products(anchor, velocity, consensus)).tolist()
        cosine = du / math.sqrt(dd * uu) if dd > 0 and uu > 0 else 0.0
        radius = min(MOST, max(1.0, radius * math.exp(cosine - AGREEMENT)))
        s, w = self.social, self.inertia
        of_d, of_u = (s + s * w - 1, s * w * w) if self.look_ahead else (s - 1, s * w)  # k = of_d d + of_u u
        kk = of_d * of_d * dd + 2 * of_d * of_u * du + of_u * of_u * uu
        return Reach(_share(kk, of_d * dd + of_u * du, max(0.0, radius * radius * spread - dd)), radius)


def _products(anchor: Tensor, velocity: Tensor, consensus: Tensor) -> Tensor:
    """Return d.d, u.u and d.u, float64 [3], in one pass; sums over blocks in double precision."""
    sums = torch.zeros(3, dtype=torch.float64)
    for block in blocks(anchor):
        d, u = consensus[block] - anchor[block], velocity[block]
        sums += torch.stack([d.dot(d), u.dot(u), d.dot(u)]).double().cpu()
    return sums


def _share(kk: float, dk: float, slack: float) -> float:
    """Return the largest t in [0, 1] with 2 t d.k + t^2 k.k <= slack; slack >= 0."""
    if kk + 2 * dk <= slack:
        return 1.0
    root = math.sqrt(dk * dk + kk * slack)
    share = slack / (dk + root) if dk > 0 else (root - dk) / kk  # the form in which nothing cancels
    return min(1.0, share)


def spread(lengths: Tensor, weights: Sequence[float]) -> float:
    """Return D2, the mean of the squared lengths of the workers' steps, each cut to 2 medians.

    0 if no worker has weight. Cut, so that one wild worker does not give the swarm room.

    Args:
        lengths: the squares, float64 [W]; those of weight 0 do not count, whatever they are.
        weights: of the W workers in the consensus.
    """
    pairs = [(length, weight) for length, weight in zip(lengths.tolist(), weights, strict=True) if weight > 0]
    if not pairs:
        return 0.0
    most = LONGEST**2 * sorted(pairs)[(len(pairs) - 1) // 2][0]
    return sum(weight * min(length, most) for length, weight in pairs) / sum(weight for _, weight in pairs)
