"""What people do without rounds: average the gradients of all workers at every step."""

from __future__ import annotations

from torch import Tensor, nn

from swarmstep import fault_points
from swarmstep.comm.data_parallel import data_parallel, limited
from swarmstep.comm.metered import Call, Metered, Traffic
from swarmstep.runtime.flat import Flat
from swarmstep.runtime.gradients import average_gradients
from swarmstep.train.config import DDP, Config
from swarmstep.train.local_step import check_finite


class GradientAveraging:
    """Averages gradients by one collective after the backward pass, or by DDP during it.

    Args:
        config: whose strategy is "synchronous" or "ddp".
        model: trained through `module`.
        comm: the group; DDP uses the process group that it was made from.
    """

    def __init__(self, config: Config, model: nn.Module, comm: Metered) -> None:
        self._by_torch = config.strategy == DDP
        self._flat = Flat(model)
        self._model, self._comm = model, comm
        self.module = data_parallel(model) if self._by_torch else model

    def backward(self, loss: Tensor) -> None:
        """Compute the gradients; with DDP also their mean."""
        with limited("DistributedDataParallel"):
            loss.backward()

    def share(self, step: int) -> Traffic:
        """Replace all gradients by their mean, and return what this worker sent and received for it.

        DDP has done so by now; what is counted then is a ring all-reduce of the gradients.

        Raises:
            NotFinite: names the ranks with a gradient that is not finite; on all ranks. DDP does not look.
        """
        with self._comm.counting() as traffic:
            if self._by_torch:
                octets = sum(p.grad.nbytes for p in self._model.parameters() if p.grad is not None)
                moved = 2 * (self._comm.size - 1) * octets // self._comm.size
                self._comm.count(Call("mean", octets, self._comm.size), moved, moved)
            else:
                self._average(step)
        return traffic

    def _average(self, step: int) -> None:
        own = self._flat.gradient()
        if fault_points.watched():
            fault_points.reach(fault_points.ROUND_OPENED, target="gradients", fragment=0, step=step, x=own)
            self._flat.write_gradient(own)
        average_gradients(self._model, self._comm)
        if not self._flat.gradient().isfinite().all():
            check_finite(own, f"step {step}: the gradient", self._comm)
