"""Accelerate, in place of its own LocalSGD: its optimizer's steps are local steps."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from typing import Any

from torch import nn
from torch.optim import Optimizer

from swarmstep.arguments import check_type
from swarmstep.comm.group import Group
from swarmstep.integrations.alone import check_alone
from swarmstep.integrations.optimizer import OptimizerHook
from swarmstep.optional_imports import library
from swarmstep.runtime.options import Options
from swarmstep.runtime.synchronizer import Synchronizer
from swarmstep.signal import Event
from swarmstep.strategies.base import Strategy

_accelerate = library("accelerate", "accelerate", "swarmstep.integrations.accelerate needs")


@contextlib.contextmanager
def synchronized(
    accelerator: Any,
    model: nn.Module,
    optimizer: Optimizer,
    strategy: Strategy,
    comm: Group,
    options: Options | None = None,
    on_event: Callable[[Event], object] | None = None,
) -> Generator[OptimizerHook]:
    """Let a model take part in a swarm for the time of the context, at whose end it is the swarm's result.

    A step in which `accelerator.accumulate` only accumulates is no local step. `accelerator.save_state` and
    `load_state`, called in the context, save and load the swarm's state with the optimizer's; each worker gives
    them a folder of its own.

    Args:
        accelerator: made inside of `alone()`, so that it works as in one process.
        model: prepared or not.
        optimizer: prepared or not.
        strategy: as in `Synchronizer`, for weights.
        comm: as in `Synchronizer`.
        options: as in `Synchronizer`.
        on_event: as in `OptimizerHook`.

    Yields:
        The hook, whose `sync` is the Synchronizer; `add_loss` tells losses to strategies that compare them.

    Raises:
        UsageError: the Accelerator works with several processes; or as in `Synchronizer`.
    """
    check_type("synchronized: accelerator", accelerator, _accelerate.Accelerator)
    check_alone("the Accelerator", accelerator.num_processes)
    with Synchronizer(accelerator.unwrap_model(model), strategy, comm, options) as sync:
        hook = OptimizerHook(sync, optimizer, on_event=on_event)
        yield hook
        hook.finish()
