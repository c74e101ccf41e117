"""Memory for intermediate results that is allocated once."""

from __future__ import annotations

import torch
from torch import Tensor


class Scratch:
    """Buffers by name, allocated once at the largest length asked for."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._buffers: dict[str, Tensor] = {}

    def _take(self, name: str, count: int, dtype: torch.dtype) -> Tensor:
        buffer = self._buffers.get(name)
        if buffer is None or len(buffer) < count:
            buffer = self._buffers[name] = torch.empty(count, dtype=dtype, device=self._device)
        return buffer[:count]

    def bytes(self, name: str, count: int) -> Tensor:
        """Return the first `count` bytes of a buffer, with the content that was left there."""
        return self._take(name, count, torch.uint8)

    def floats(self, name: str, count: int) -> Tensor:
        """Return the first `count` float32 elements of a buffer, with the content that was left there."""
        return self._take(name, count, torch.float32)
