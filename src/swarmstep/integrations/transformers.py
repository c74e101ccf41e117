"""Hugging Face's Trainer: its optimizer's steps are local steps, and its checkpoints hold the swarm's state."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor

from swarmstep.arguments import check_type
from swarmstep.comm.group import Group
from swarmstep.errors import UsageError
from swarmstep.integrations.alone import check_alone, check_folders
from swarmstep.integrations.optimizer import OptimizerHook
from swarmstep.optional_imports import library
from swarmstep.runtime.options import Options
from swarmstep.runtime.synchronizer import Synchronizer
from swarmstep.signal import Event
from swarmstep.strategies.base import Strategy

_transformers = library("transformers", "transformers", "swarmstep.integrations.transformers needs")


def synchronize(
    trainer: Any,
    strategy: Strategy,
    comm: Group,
    options: Options | None = None,
    on_event: Callable[[Event], object] | None = None,
) -> Synchronizer:
    """Let a Trainer's model take part in a swarm; call it before `trainer.train`, at the same point on all ranks.

    The Trainer, or a subclass of it, is made inside of `alone()`, so that it trains as in one process. Each worker
    gives it its own examples, and an `output_dir` of its own. `trainer.train(resume_from_checkpoint=...)` goes on
    with the swarm's state, which is in the checkpoint's optimizer.pt. At the end of `train` the model is the
    swarm's result; evaluations and checkpoints before that are of this worker's own model.

    Args:
        trainer: a transformers.Trainer, with an optimizer of its own or one that it creates.
        strategy: as in `Synchronizer`, for weights.
        comm: as in `Synchronizer`.
        options: as in `Synchronizer`.
        on_event: as in `OptimizerHook`.

    Returns:
        The Synchronizer. `step` and `finish` are called by the Trainer.

    Raises:
        UsageError: the Trainer was made outside of `alone()`; or has `model_init`, `load_best_model_at_end` or
            `auto_find_batch_size`; or two workers write to one `output_dir`; or as in `Synchronizer`.
    """
    check_type("synchronize: trainer", trainer, _transformers.Trainer)
    args = trainer.args
    check_alone("the Trainer", args.world_size, args.n_gpu)
    _check_arguments(trainer)
    check_folders(args.output_dir if args.save_strategy != "no" else None, comm)
    if hasattr(trainer.model, "should_save_on_this_rank"):  # else `save_pretrained` writes nothing but on rank 0
        trainer.model.should_save_on_this_rank = bool
    sync = Synchronizer(trainer.model, strategy, comm, options)
    hook = OptimizerHook(sync, trainer.create_optimizer(), on_event=on_event)
    trainer.training_step = functools.partial(_training_step, trainer.training_step, hook)
    trainer.add_callback(_Finish(hook))
    return sync


def _check_arguments(trainer: Any) -> None:
    """Raise UsageError for what would replace the model, or its weights, behind the Synchronizer."""
    given = {
        "model_init": trainer.model_init is not None,
        "load_best_model_at_end": trainer.args.load_best_model_at_end,
        "auto_find_batch_size": trainer.args.auto_find_batch_size,
    }
    for name, found in given.items():
        if found:
            raise UsageError(
                f"the Trainer has {name}, which replaces the model's weights while the swarm holds others; leave "
                "it out (the swarm's result is in the model after train())"
            )


def _training_step(step: Any, hook: OptimizerHook, *args: Any, **kwargs: Any) -> Tensor:
    """Call the Trainer's `training_step`, and tell the loss that it returns: a batch's share of the step's."""
    loss = step(*args, **kwargs)
    hook.add_loss(loss)
    return loss


class _Finish(_transformers.TrainerCallback):
    """Lands the swarm's result in the model when the Trainer has taken its last step."""

    def __init__(self, hook: OptimizerHook) -> None:
        self._hook = hook

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self._hook.finish()
