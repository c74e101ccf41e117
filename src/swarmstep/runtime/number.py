"""One number out of what a user's function returns for one."""

from __future__ import annotations

import math
import numbers

from torch import Tensor

from swarmstep.errors import UsageError


def number(value: object) -> float | None:
    """Return an int, bool, float, NumPy number or tensor of one real element as a float; else None."""
    if isinstance(value, Tensor):
        return float(value.detach()) if value.numel() == 1 and not value.is_complex() else None
    if isinstance(value, numbers.Real):
        try:
            return float(value)
        except OverflowError:  # an integer of hundreds of digits
            return math.inf  # or below 0; as a loss both count as none
    if getattr(value, "size", None) == 1 and hasattr(value, "item"):  # NumPy's bool, and arrays of one element
        return number(value.item())  # type: ignore[attr-defined]
    return None


def scalar_loss(loss: object) -> Tensor | float:
    """Return a step's loss, a tensor of one element without its graph, or a number.

    Raises:
        UsageError: it is something else.
    """
    if isinstance(loss, Tensor):
        if loss.numel() == 1 and not loss.is_complex():
            return loss.detach()
        found = f"shape {list(loss.shape)}, {loss.dtype}"
    else:
        value = number(loss)
        if value is not None:
            return value
        found = f"one of type {type(loss).__name__}"
    raise UsageError(f"Synchronizer.step: expected a scalar loss, found {found}")
