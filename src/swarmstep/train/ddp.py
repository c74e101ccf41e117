"""Training by torch's DistributedDataParallel: what people do without rounds, as a baseline."""

from __future__ import annotations

from torch import nn

from swarmstep.comm.data_parallel import data_parallel
from swarmstep.comm.group import Group
from swarmstep.comm.metered import Call, Metered
from swarmstep.runtime.flat import Flat
from swarmstep.signal import Round
from swarmstep.train.config import DDP
from swarmstep.train.local_step import check_finite


class DataParallel:
    """Averages gradients during the backward pass.

    Args:
        model: trained through `module`.
        comm: the group, of the process group that torch uses.
    """

    def __init__(self, model: nn.Module, comm: Group) -> None:
        self._model, self._comm = model, Metered(comm)
        self.module = data_parallel(model)

    def report(self, step: int) -> Round:
        """Return what a step's gradients have cost this worker: a ring all-reduce of them is counted."""
        size = sum(p.grad.nbytes for p in self._model.parameters() if p.grad is not None)
        moved = 2 * (self._comm.size - 1) * size // self._comm.size
        return Round(
            step=step,
            strategy=DDP,
            fragment=0,
            participants=self._comm.size,
            losses=(),
            weights=(),
            compute_seconds=(),
            wait_seconds=(),
            send_seconds=(),
            bytes_sent=moved,
            bytes_received=moved,
            calls=(Call("mean", size, self._comm.size),),
            seconds=0.0,
            probe_seconds=0.0,
            distrusted=(),
        )

    def finish(self) -> None:
        """Raise NotFinite, on all ranks, where the model of a rank is not finite, as DDP does not. Collective."""
        check_finite(Flat(self._model).read(), "after the last step: the model", self._comm)
