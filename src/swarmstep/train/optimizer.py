"""The inner optimizer of a worker: one of torch's, or two that share a model's parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from swarmstep.errors import UsageError
from swarmstep.objectives import ControlVariates, ProximalStages
from swarmstep.objectives.inner import Inner
from swarmstep.objectives.slow_momentum import SlowMomentumAdam
from swarmstep.runtime.module_tensors import average_only
from swarmstep.train.config import Config
from swarmstep.train.local_step import Trained, proximal
from swarmstep.workloads.defaults import Defaults

# What the parts of each optimizer remember of a parameter.
STATES: Mapping[str, tuple[str, ...]] = {
    "sgd": (),
    "momentum": ("momentum_buffer",),
    "adamw": ("exp_avg", "exp_avg_sq"),
    "muon": ("exp_avg", "exp_avg_sq", "momentum_buffer"),
    "mt-dao": ("exp_avg_sq", "slow_avg"),
}


class LocalOptimizer:
    """Optimizers of different parameters of one model, which take their steps together and share a learning rate.

    Args:
        parts: the optimizers.
    """

    def __init__(self, parts: Sequence[Inner]) -> None:
        self.parts = tuple(parts)

    def step(self, lr: float) -> None:
        """Take a step with this learning rate."""
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = lr
            part.step()

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for part in self.parts:
            part.zero_grad()

    def landed(self) -> None:
        """Take note that a round has landed."""
        for part in self.parts:
            if isinstance(part, ControlVariates):
                part.landed()

    def forget(self) -> None:
        """Forget all moments and momenta, as if no step had been taken."""
        for part in self.parts:
            part.state.clear()

    def state_dict(self) -> dict[str, Any]:
        """Return what there is to save."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`; ValueError where it does not fit."""
        for part, state in zip(self.parts, saved["parts"], strict=True):
            part.load_state_dict(state)


def build_optimizer(model: nn.Module, config: Config) -> LocalOptimizer:
    """Return the inner optimizer: sgd, momentum (SGD with momentum 0.9), adamw, mt-dao, or muon.

    "muon" is Muon (Jordan et al. 2024, torch.optim.Muon) for the `hidden_matrices` and AdamW for the rest. Muon's
    steps have the size of AdamW's (Liu et al., arXiv 2502.16982), so that one learning rate and one weight decay
    serve both. "mt-dao" is `SlowMomentumAdam`. Weight decay, but of SGD, is for tensors of two and more
    dimensions: not for biases and norms.

    Raises:
        UsageError: the model has nothing to train, or for muon no hidden matrix, or this torch has no Muon.
    """
    settings = config.training
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise UsageError("the model has no trainable parameter: expected one with requires_grad=True")
    parts: list[Inner]
    if settings.optimizer == "adamw":
        parts = [_adamw(parameters, settings)]
    elif settings.optimizer == "mt-dao":
        parts = [SlowMomentumAdam(_decayed(parameters, settings), lr=settings.lr)]
    elif settings.optimizer == "muon":
        parts = [*_muon(model, parameters, config)]
    else:
        momentum = 0.9 if settings.optimizer == "momentum" else 0.0
        parts = [torch.optim.SGD(parameters, settings.lr, momentum, weight_decay=settings.weight_decay)]
    if config.proximal is not None:
        gamma, first = proximal(config)
        named, only = dict(model.named_parameters()), average_only(model)
        parts = [ProximalStages(part, gamma, first, [named[name] for name in only]) for part in parts]
    if isinstance(model, Trained) and model.mean_gradient is not None:
        parts = [ControlVariates(part, model.mean_gradient) for part in parts]
    return LocalOptimizer(parts)


def hidden_matrices(model: nn.Module) -> list[nn.Parameter]:
    """Return the trainable parameters of two dimensions, without embeddings and the last nn.Linear's weight.

    The last in the order of `model.modules()`, which is that in which modules were made part of the model.
    """
    embeddings = [m for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)]
    last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1:]
    outer = {id(p) for module in (*embeddings, *last) for p in module.parameters()}
    return [p for p in model.parameters() if p.requires_grad and p.ndim == 2 and id(p) not in outer]


def _adamw(parameters: Sequence[nn.Parameter], settings: Defaults) -> torch.optim.Optimizer:
    return torch.optim.AdamW(_decayed(parameters, settings), lr=settings.lr)


def _decayed(parameters: Sequence[nn.Parameter], settings: Defaults) -> list[dict[str, Any]]:
    """Return groups of parameters: those of two and more dimensions with weight decay, the others without."""
    decayed = [p for p in parameters if p.ndim >= 2]
    others = [p for p in parameters if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _muon(model: nn.Module, parameters: Sequence[nn.Parameter], config: Config) -> list[torch.optim.Optimizer]:
    muon = getattr(torch.optim, "Muon", None)
    if muon is None:
        raise UsageError(f"optimizer muon: expected torch 2.9 or newer, found {torch.__version__}; take adamw")
    settings, hidden = config.training, hidden_matrices(model)
    if not hidden:
        raise UsageError(
            f"optimizer muon: model {config.model!r} has no hidden matrix, only embeddings, a last linear layer "
            "and the like; expected another model, or --optimizer adamw"
        )
    matched = {"adjust_lr_fn": "match_rms_adamw", "weight_decay": settings.weight_decay}
    parts = [muon(hidden, lr=settings.lr, **matched)]
    known = {id(p) for p in hidden}
    rest = [p for p in parameters if id(p) not in known]
    return [*parts, _adamw(rest, settings)] if rest else parts
