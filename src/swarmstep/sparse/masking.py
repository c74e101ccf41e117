"""The mask of N:M sparsity, and the gradient that passes it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from swarmstep.comm.nm_codec import keep_largest


class NMMask(nn.Module):
    """A parametrization: the weight with only the n largest magnitudes in each m consecutive elements of a row.

    A row is what one output reads: [out, in] of a linear layer, [out, in * kernel] of a convolution, flattened.
    The mask follows from the weight at each call, so one that a round has changed has its own mask at once.

    Attributes:
        mask: of the last training step, in the shape of the weight.
        flips: how many elements of the mask have changed from one training step to the next, summed over them.
    """

    mask: Tensor
    flips: Tensor

    def __init__(self, weight: Tensor, n: int, m: int, decay: float) -> None:
        super().__init__()
        self.n, self.m, self.decay = n, m, decay
        self.register_buffer("mask", self._mask(weight))
        self.register_buffer("flips", torch.zeros((), dtype=torch.int64, device=weight.device))

    def _mask(self, weight: Tensor) -> Tensor:
        return keep_largest(weight.reshape(-1, self.m), self.n).reshape(weight.shape)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the masked weight; in training mode, count what the mask has changed."""
        mask = self._mask(weight)
        if self.training and torch.is_grad_enabled():
            self.flips += (mask != self.mask).sum()
            self.mask.copy_(mask)
        masked: Tensor = _StraightThrough.apply(weight, mask, self.decay)
        return masked

    def extra_repr(self) -> str:
        return f"{self.n}:{self.m}, decay={self.decay}"


class _StraightThrough(torch.autograd.Function):
    """weight * mask; its gradient passes unmasked, and pruned weights decay: g + decay (1 - mask) weight."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, mask: Tensor, decay: float) -> Tensor:
        ctx.save_for_backward(weight, mask)
        ctx.decay = decay
        return weight * mask

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        weight, mask = ctx.saved_tensors
        return gradients[0] + ctx.decay * (weight * ~mask), None, None
