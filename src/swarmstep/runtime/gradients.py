"""The gradients of a module as one flat vector: what methods that synchronize gradients see in place of x."""

from __future__ import annotations

import dataclasses
from itertools import accumulate

from torch import Tensor, nn

from swarmstep.arguments import check_type
from swarmstep.comm.base import Comm
from swarmstep.runtime.flat import Flat


class Gradients:
    """The gradients of the parameters in x, [number of parameters], read and written like x itself.

    A parameter without a gradient counts as zero, so that all ranks send the same, and gets one in `close`.

    Args:
        flat: the module's x, in one fragment.
    """

    def __init__(self, flat: Flat) -> None:
        self._flat = flat
        whole = flat.layout
        trained = sum(1 for end in accumulate(whole.sizes) if end <= whole.parameters + whole.averaged)
        names, sizes = whole.names[:trained], whole.sizes[:trained]
        self.fragments = (dataclasses.replace(whole, names=names, sizes=sizes, shapes=whole.shapes[:trained]),)

    def read(self, fragment: int | None = None) -> Tensor:
        """Return a copy of the gradients."""
        return self._flat.gradient()

    def open(self, fragment: int = 0) -> Tensor:
        """Return a copy of the gradients; whoever changes it calls `close` afterwards."""
        return self._flat.gradient()

    def close(self, x: Tensor, fragment: int = 0) -> None:
        """Set the gradients from what `open` returned."""
        self._flat.write_gradient(x)


def average_gradients(model: nn.Module, comm: Comm) -> None:
    """Replace every worker's gradients by their mean, without a Synchronizer.

    Call it between `backward` and `optimizer.step`. One all-reduce of P, 2 (W-1)/W P sent by each worker at each
    step. Parameters without a gradient on some rank count as zero there, so that all ranks send the same.
    """
    check_type("average_gradients: model", model, nn.Module)
    check_type("average_gradients: comm", comm, Comm)
    flat = Flat(model)
    flat.write_gradient(comm.mean(flat.gradient())[0])
