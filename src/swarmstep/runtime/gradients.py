"""Synchronous training: the baseline that averages gradients at every step."""

from __future__ import annotations

from torch import nn

from swarmstep.comm.base import Comm
from swarmstep.runtime.flat import Flat


def average_gradients(model: nn.Module, comm: Comm) -> None:
    """Replace every worker's gradients by their mean; call it between `backward` and `optimizer.step`.

    One all-reduce of P, 2 (W-1)/W P sent by each worker at each step. Parameters without a gradient on some
    rank count as zero there, so that all ranks send the same.
    """
    flat = Flat(model)
    flat.write_gradient(comm.mean(flat.gradient())[0])
