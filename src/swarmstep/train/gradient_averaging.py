"""What people do without rounds: average the gradients of all workers at every step."""

from __future__ import annotations

from torch import nn

from swarmstep import fault_points
from swarmstep.comm.data_parallel import data_parallel
from swarmstep.comm.group import Group
from swarmstep.comm.metered import Call, Metered
from swarmstep.runtime.flat import Flat
from swarmstep.runtime.gradients import average_gradients
from swarmstep.signal import Round
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
        self._strategy = config.strategy
        self._flat = Flat(model)
        self._model, self._comm = model, comm
        self.module = data_parallel(model) if self._by_torch else model

    @classmethod
    def of(cls, config: Config, model: nn.Module, comm: Group) -> GradientAveraging | None:
        """Return what averages the gradients of a run, None where nothing does."""
        return cls(config, model, Metered(comm)) if config.averages_gradients else None

    def reduce(self, step: int) -> Round:
        """Replace all gradients by their mean, and return what this worker sent and received for it.

        DDP has done so by now; what is counted then is a ring all-reduce of the gradients.

        Raises:
            NotFinite: names the ranks with a gradient that is not finite; on all ranks. DDP does not look.
        """
        began = self._comm.clock()
        with self._comm.counting() as traffic:
            if self._by_torch:
                size = sum(p.grad.nbytes for p in self._model.parameters() if p.grad is not None)
                moved = 2 * (self._comm.size - 1) * size // self._comm.size
                self._comm.count(Call("mean", size, self._comm.size), moved, moved)
            else:
                self._average(step)
        return Round(
            step=step,
            strategy=self._strategy,
            fragment=0,
            participants=self._comm.size,
            losses=(),
            weights=(),
            compute_seconds=(),
            wait_seconds=(),
            send_seconds=(),
            bytes_sent=traffic.sent,
            bytes_received=traffic.received,
            calls=tuple(traffic.calls),
            seconds=self._comm.clock() - began,
            probe_seconds=0.0,
            distrusted=(),
        )

    def finish(self) -> None:
        """Raise NotFinite, on all ranks, where the model of some rank is not finite. Collective."""
        check_finite(self._flat.read(), "after the last step: the model", self._comm)

    def _average(self, step: int) -> None:
        own = self._flat.gradient()
        if fault_points.watched():
            fault_points.reach(fault_points.ROUND_OPENED, target="gradients", fragment=0, step=step, x=own)
            self._flat.write_gradient(own)
        average_gradients(self._model, self._comm)
        if not self._flat.gradient().isfinite().all():
            check_finite(own, f"step {step}: the gradient", self._comm)
