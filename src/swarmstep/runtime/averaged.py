"""Parameters that are only averaged: in each round they take the workers' mean, whatever the strategy does."""

from __future__ import annotations

from torch import Tensor

from swarmstep.comm.base import Comm
from swarmstep.signal import Layout


def with_means(x: Tensor, layout: Layout, weight: float, comm: Comm) -> Tensor:
    """Return a copy of x [P] with the workers' mean in the place of what is averaged only.

    Collective: one all-reduce of `layout.averaged` elements, sent as they are.

    Args:
        x: of this worker.
        layout: of x.
        weight: of this worker.
        comm: the group, without a codec.
    """
    first, end = layout.parameters, layout.parameters + layout.averaged
    x = x.clone()
    x[first:end] = comm.mean(x[first:end].clone(), weight)[0]
    return x
