"""The inner optimizer: what each worker does by itself."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from swarmstep.comm.base import Comm
from swarmstep.errors import NotFinite, UsageError
from swarmstep.train.config import DDP, Config
from swarmstep.train.modifiers import build_modifiers
from swarmstep.workloads import Workload


def build_model(config: Config, workload: Workload) -> nn.Module:
    """Return the model that the config names, with weights from torch's global generator, and as it modifies it.

    Raises:
        UsageError: what the workload builds is no module, or a modifier does not go with it.
    """
    model = cast(object, workload.models[config.model or ""]())
    if not isinstance(model, nn.Module):
        raise UsageError(
            f"workload {workload.name!r}, model {config.model!r}: expected a function that returns a "
            f"torch.nn.Module, found that it returns {type(model).__name__}"
        )
    build_modifiers(config).prepare(model)
    return model


def learning_rate(config: Config, step: int) -> float:
    """Return the inner learning rate of a 1-based step: it rises in the warm-up, then follows the schedule."""
    settings = config.training
    if step <= settings.warmup:
        return settings.lr * step / settings.warmup
    if settings.schedule == "constant":
        return settings.lr
    done = (step - 1 - settings.warmup) / (settings.steps - settings.warmup)
    return settings.lr * 0.5 * (1.0 + math.cos(math.pi * done))


def clip_gradient(model: nn.Module, config: Config) -> None:
    """Shorten the gradient of all parameters together to the config's `clip`, where it is longer."""
    if config.clip:
        nn.utils.clip_grad_norm_(model.parameters(), config.clip)


def measure_loss(workload: Workload, outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the workload's loss.

    Raises:
        UsageError: it is not one number, or does not depend on the model where gradients are wanted.
    """
    loss = cast(object, workload.loss(outputs, targets))
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        found = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise UsageError(f"workload {workload.name!r}: loss must return a tensor of one number, found {found}")
    if torch.is_grad_enabled() and not loss.requires_grad:
        raise UsageError(f"workload {workload.name!r}: the loss does not depend on the model's parameters")
    return loss.reshape(())


def check_finite(own: Tensor, what: str, comm: Comm) -> None:
    """Raise NotFinite, on all ranks, naming those whose `own` is not finite. Collective."""
    bad = comm.gather(~own.isfinite().all().cpu()).nonzero().view(-1).tolist()
    if bad:
        raise NotFinite(
            f"{what} of rank {', '.join(map(str, bad))} is not finite, and {DDP} cannot contain that; "
            "lower the learning rate, clip gradients, or look at that rank's data"
        )
