"""Particles on a ring: who leads whom, and how the leaders' vectors travel."""

from __future__ import annotations

import math
from collections.abc import Collection

from torch import Tensor

from swarmstep.comm.base import Comm


def ring_leaders(scores: Tensor) -> list[int]:
    """Return, for each rank, the rank of the lowest of scores [W] among itself and its two neighbours.

    Ties go to the lowest rank. Where all three scores are infinite a rank is its own leader.
    """
    size, values = len(scores), scores.tolist()
    leaders: list[int] = []
    for rank in range(size):
        near = sorted({(rank - 1) % size, rank, (rank + 1) % size})
        best = min(near, key=lambda j: values[j])
        leaders.append(best if math.isfinite(values[best]) else rank)
    return leaders


def fetch(x: Tensor, leaders: list[int], receivers: Collection[int], comm: Comm) -> Tensor | None:
    """Return the x of this rank's leader if this rank is among the `receivers`, whose leader is a neighbour.

    At most two permutes, one in each direction. Ranks that neither send nor receive are their own source in them,
    which costs nothing.
    """
    size, leader = comm.size, None
    from_below = {rank for rank in receivers if leaders[rank] == (rank - 1) % size}
    from_above = {rank for rank in receivers if leaders[rank] == (rank + 1) % size} - from_below
    for some, offset in ((from_below, 1), (from_above, -1)):
        if some:
            received = comm.permute(x, _route(some, offset, size))
            leader = received if comm.rank in some else leader
    return leader


def _route(receivers: Collection[int], offset: int, size: int) -> list[int]:
    """Return the permutation in which each receiver r has source r - offset, and few others move.

    Receivers form chains; the rank before a chain is given what the last rank of it has, to close the circle.
    """
    source = list(range(size))
    for start in range(size):
        end = start
        while start not in receivers and (end + offset) % size in receivers:
            source[(end + offset) % size] = end
            end = (end + offset) % size
        if start not in receivers:
            source[start] = end
    return source
