"""The inner optimizer's learning rate, from what a training loop tells of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn

from swarmstep.errors import UsageError
from swarmstep.runtime.number import number
from swarmstep.signal import Layout


class Optimizer(Protocol):
    """What has parameter groups: any torch.optim.Optimizer."""

    param_groups: list[dict[str, Any]]


Rate = float | Optimizer | Sequence[Optimizer]  # what a training loop tells


class LearningRate(NamedTuple):
    """The learning rate of a step.

    `highest` is that of all parameter groups, None where it was not told; `each` that of each parameter by name,
    where the groups differ, else empty.
    """

    highest: float | None
    each: dict[str, float]


def learning_rate(given: Rate | None, model: nn.Module, where: str) -> LearningRate:
    """Return the learning rate that was given as a number, or by an optimizer or several, as it is now.

    Args:
        given: by the caller of `where`.
        model: whose parameters the optimizers have.
        where: for errors.

    Raises:
        UsageError: it is neither, or a rate is below 0 or not finite.
    """
    if given is None:
        return LearningRate(None, {})
    groups = _groups(given)
    if groups is None:
        return LearningRate(_checked(given, where), {})
    told = [group.get("lr") for group in groups]
    if any(rate is None for rate in told):
        return LearningRate(None, {})
    rates = [_checked(rate, where) for rate in told]
    if len({*rates}) == 1:
        return LearningRate(rates[0], {})
    owned = {id(p): rate for group, rate in zip(groups, rates, strict=True) for p in group["params"]}
    each = {name: owned[id(p)] for name, p in model.named_parameters() if id(p) in owned}
    return LearningRate(max(rates), each)


def _groups(given: Rate) -> list[dict[str, Any]] | None:
    """Return the parameter groups of an optimizer or of several; None where it is something else."""
    parts: Sequence[object] = cast(Sequence[object], given) if isinstance(given, list | tuple) else [given]
    groups = [getattr(part, "param_groups", None) for part in parts]
    return [group for part in groups for group in part or ()] if parts and None not in groups else None


def _checked(given: object, where: str) -> float:
    rate = number(given)
    if rate is None or not 0.0 <= rate < math.inf:
        raise UsageError(
            f"{where}: expected lr, the inner optimizer's learning rate, as a finite number of at least 0, a list "
            f"of all optimizers, or the optimizer itself, found {given!r}"
        )
    return rate


def of_elements(each: Mapping[str, float], layout: Layout, like: Tensor) -> Tensor:
    """Return the learning rate of each element of a vector with this layout, [P]; 0 for buffers.

    Raises:
        UsageError: a parameter has none.
    """
    rates, end = torch.zeros_like(like), 0
    for name, size in zip(layout.names, layout.sizes, strict=True):
        start, end = end, end + size
        if end > layout.parameters:
            break
        if name not in each:
            raise UsageError(
                f"parameter {name!r} is in none of the optimizer's groups, whose learning rates differ; give step "
                "an optimizer that has all that is trained, or freeze this one before the Synchronizer is made"
            )
        rates[start:end] = each[name]
    return rates
