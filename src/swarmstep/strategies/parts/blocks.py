"""Long vectors in blocks, so that several operations on each block cost little more than one pass over memory."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

LENGTH = 1 << 16  # elements: a few vectors of this length fit in a core's cache


def blocks(x: Tensor) -> Iterator[slice]:
    """Yield slices that cover x [P] in order; a single one on other devices than a CPU.

    There the launch of an operation costs more than a pass over memory.
    """
    length = LENGTH if x.device.type == "cpu" else max(1, x.numel())
    for start in range(0, x.numel(), length):
        yield slice(start, min(start + length, x.numel()))


def squared_distance(x: Tensor, y: Tensor) -> float:
    """Return |x - y|^2, with the sum over blocks in double precision."""
    total = 0.0
    for block in blocks(x):
        apart = x[block] - y[block]
        total += float(apart.dot(apart))
    return total
