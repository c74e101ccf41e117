"""One number out of what a user's function returns for one."""

from __future__ import annotations

import numbers

from torch import Tensor


def number(value: object) -> float | None:
    """Return an int, bool, float, NumPy number or tensor of one real element as a float; else None."""
    if isinstance(value, Tensor):
        return float(value.detach()) if value.numel() == 1 and not value.is_complex() else None
    if isinstance(value, numbers.Real):
        return float(value)
    if getattr(value, "size", None) == 1 and hasattr(value, "item"):  # NumPy's bool, and arrays of one element
        return number(value.item())  # type: ignore[attr-defined]
    return None
