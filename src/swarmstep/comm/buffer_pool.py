"""Buffers for the results of collectives, allocated once."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


class BufferPool:
    """Hands out tensors; with `reuse`, those handed out before the last `recycle` are handed out again.

    Allocating a 40 MB vector costs a round as much as a pass over it: the system maps and clears its pages.
    """

    def __init__(self, *, reuse: bool) -> None:
        self.reuse = reuse
        self._out: list[Tensor] = []
        self._free: list[Tensor] = []

    def take(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """Return a contiguous tensor with the dtype and device of `like`; its content is undefined."""
        shape = tuple(shape)
        if not self.reuse:
            return torch.empty(shape, dtype=like.dtype, device=like.device)
        count = math.prod(shape)
        for index, old in enumerate(self._free):
            if (old.numel(), old.dtype, old.device) == (count, like.dtype, like.device):
                self._out.append(self._free.pop(index))
                break
        else:
            self._out.append(torch.empty(count, dtype=like.dtype, device=like.device))
        return self._out[-1].view(shape)

    def recycle(self) -> None:
        """Let everything handed out be reused; what nobody has taken since the last call is freed."""
        self._free, self._out = self._out, []
