"""The inner optimizer: what each worker does by itself."""

from __future__ import annotations

import dataclasses
import math
from typing import cast

import torch
from torch import Tensor, nn

from swarmstep.comm.base import Comm
from swarmstep.data.sharding import hold_out
from swarmstep.errors import NotFinite, UsageError
from swarmstep.objectives import GROWTH, MeanGradient, stage_of
from swarmstep.train.config import DDP, Config
from swarmstep.train.modifiers import build_modifiers
from swarmstep.workloads import Workload
from swarmstep.workloads.base import Loss


class Trained(nn.Module):
    """A model together with the objective that it is trained for, whose parameters are trained with the model's.

    Args:
        model: called as it is.
        objective: loss(outputs, targets), a mean over the batch; a module or a function.
        control: whether there are control variates, which need the workers' mean gradient.
    """

    def __init__(self, model: nn.Module, objective: Loss, *, control: bool = False) -> None:
        super().__init__()
        self.model, self.objective = model, objective
        trained = [p for p in self.parameters() if p.requires_grad]
        self.mean_gradient = MeanGradient(trained) if control else None

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the model's outputs."""
        return self.model(inputs)


def bare(model: nn.Module) -> nn.Module:
    """Return the model without its objective."""
    return model.model if isinstance(model, Trained) else model


def build_model(config: Config, workload: Workload) -> nn.Module:
    """Return the model that the config names, with weights from torch's global generator, as it modifies it.

    With an objective of its own, both are one module.

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
    objective = workload.loss
    if config.objective is not None:
        objective = workload.objectives[config.objective](drawn_shares(config, workload))
    elif not config.control_variates:
        return model
    return Trained(model, objective, control=config.control_variates)


def drawn_shares(config: Config, workload: Workload) -> Tensor:
    """Return the classes' shares among the examples as they are drawn, float64 [C]."""
    classes = workload.classes or 0
    if config.sampling == "balanced":
        return torch.full((classes,), 1 / classes, dtype=torch.float64)
    targets = workload.train.targets[hold_out(len(workload.train), config.seed).train]
    return targets.flatten().bincount(minlength=classes).double() / targets.numel()


def learning_rate(config: Config, step: int) -> float:
    """Return the inner learning rate of a 1-based step: it rises in the warm-up, then follows the schedule.

    With proximal stages it is lower in each stage.
    """
    settings = config.training
    if config.proximal is not None:
        settings = dataclasses.replace(settings, lr=settings.lr * GROWTH ** -stage_of(step, proximal(config)[1]))
    if step <= settings.warmup:
        return settings.lr * step / settings.warmup
    if settings.schedule == "constant":
        return settings.lr
    done = (step - 1 - settings.warmup) / (settings.steps - settings.warmup)
    return settings.lr * 0.5 * (1.0 + math.cos(math.pi * done))


def proximal(config: Config) -> tuple[float, int]:
    """Return gamma and the first stage's steps, as the config's `proximal` says them.

    Raises:
        UsageError: it does not.
    """
    gamma, _, first = (config.proximal or "").partition(",")
    try:
        found = float(gamma), int(first)
    except ValueError:
        found = 0.0, 0
    if not 0.0 < found[0] < math.inf or found[1] < 1:
        raise UsageError(
            f"--proximal: expected GAMMA,STEPS, both above 0, such as 500,4000, found {config.proximal}"
        )
    return found


def clip_gradient(model: nn.Module, config: Config) -> None:
    """Shorten the gradient of all parameters together to the config's `clip`, where it is longer."""
    if config.clip:
        nn.utils.clip_grad_norm_(model.parameters(), config.clip)


def measure_loss(model: nn.Module, workload: Workload, outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the loss of a model's outputs: that of its objective, else the workload's.

    Raises:
        UsageError: it is not one number, or does not depend on the model where gradients are wanted.
    """
    objective = model.objective if isinstance(model, Trained) else workload.loss
    loss = cast(object, objective(outputs, targets))
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
