"""Lightning: its optimizers' steps are local steps, and its checkpoints hold the swarm's state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from swarmstep.comm.group import Group
from swarmstep.integrations.alone import check_alone, check_folders
from swarmstep.integrations.optimizer import OptimizerHook
from swarmstep.optional_imports import library
from swarmstep.runtime.options import Options
from swarmstep.runtime.state_transfer import take_over, tensors_of
from swarmstep.runtime.synchronizer import Synchronizer
from swarmstep.signal import Event
from swarmstep.strategies.base import Strategy

_lightning = library("lightning.pytorch", "lightning", "swarmstep.integrations.lightning needs")


class SwarmCallback(_lightning.Callback):
    """Lets the LightningModule that is fitted take part in a swarm, whose result it is when `fit` returns.

    The Trainer is made inside of `alone()`, with one device and a `default_root_dir` of each worker's own; each
    worker's loader has its own examples. A batch whose gradients are only accumulated is no local step. With
    several optimizers (manual optimization) a step of the last one is. `fit(ckpt_path=...)` goes on with the
    swarm's state, which is in the checkpoint with the optimizer's; checkpoints are of this worker's own model.

    Args:
        strategy: as in `Synchronizer`, for weights.
        comm: as in `Synchronizer`.
        options: as in `Synchronizer`.
        on_event: as in `OptimizerHook`.

    Raises:
        UsageError: in `fit`: the Trainer works with several processes, or two workers write their checkpoints to
            the same folder, or as in `Synchronizer`.
    """

    def __init__(
        self,
        strategy: Strategy,
        comm: Group,
        options: Options | None = None,
        on_event: Callable[[Event], object] | None = None,
    ) -> None:
        self._strategy, self._comm, self._options, self._on_event = strategy, comm, options, on_event
        self._hook: OptimizerHook | None = None

    @property
    def sync(self) -> Synchronizer:
        """The Synchronizer of the last `fit`. `step` and `finish` are called by the Trainer."""
        assert self._hook, "the Synchronizer is made in Trainer.fit"
        return self._hook.sync

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Make the Synchronizer: the model is on its device, and a checkpoint's weights are loaded."""
        check_alone("Lightning's Trainer", trainer.world_size)
        saves = trainer.checkpoint_callback
        check_folders(saves.dirpath if saves else None, self._comm)
        own = tensors_of(pl_module) if trainer.ckpt_path else None
        sync = Synchronizer(pl_module, self._strategy, self._comm, self._options)
        if own:  # of a checkpoint: not rank 0's. The swarm's state is loaded next, with the optimizer's.
            take_over(pl_module, own)
        self._hook = OptimizerHook(sync, *trainer.optimizers, on_event=self._on_event)

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        """Tell a batch's loss, divided for the accumulation, without the gradient scaler's factor."""
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        assert self._hook
        self._hook.add_loss(loss.detach() / scaler.get_scale() if scaler else loss)

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Land the swarm's result in the model; the last checkpoint has been written."""
        assert self._hook
        self._hook.finish()
