"""What a strategy sees of the group: a rank, a size, and the verbs."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from swarmstep.errors import CommError, UsageError


class Comm(ABC):
    """This worker's view of its group: `rank`, `size` and the verbs. `swarmstep.comm.group.Group` adds its life.

    Every verb is collective: all ranks call it, in the same order, with tensors of the same shape and dtype.
    No verb changes its argument; each returns a new tensor. CPU tensors (losses, votes) travel on the control
    group, others on the group of their device.
    """

    rank: int
    size: int

    @abstractmethod
    def clock(self) -> float:
        """Return seconds since a fixed point, to measure durations; waiting for others counts where it is real."""

    @abstractmethod
    def mean(self, x: Tensor, weight: float = 1.0) -> tuple[Tensor, float]:
        """Return (sum_i w_i x_i / sum_i w_i, sum_i w_i), the same on all ranks.

        A rank with weight 0 sends zeros, never 0*x, so that its NaN does not spread.

        Args:
            x: floating point, any shape.
            weight: this rank's w_i >= 0.

        Raises:
            CommError: the weights of all ranks sum to 0.
        """

    @abstractmethod
    def gather(self, x: Tensor) -> Tensor:
        """Return all ranks' x as [size, *x.shape], in rank order."""

    @abstractmethod
    def broadcast(self, x: Tensor, src: int) -> Tensor:
        """Return the x of rank `src`; the x of the other ranks gives only shape, dtype and device."""

    @abstractmethod
    def permute(self, x: Tensor, source: Sequence[int]) -> Tensor:
        """Return the x of rank `source[rank]`; `source` is a permutation of the ranks, the same on all."""

    @abstractmethod
    def all_to_all(self, x: Tensor) -> Tensor:
        """Return [size, ...], whose row j is row `rank` of the x [size, ...] of rank j."""

    @abstractmethod
    def split(self, color: int, name: str = "") -> Comm:
        """Return a Comm of the ranks that gave the same color, in the order of their ranks here.

        With a name, which must be the same on all ranks, the groups are made once: the next call with this name
        returns the same Comm, whatever the color.
        """

    @abstractmethod
    def sent(self, x: Tensor) -> Tensor:
        """Return what the others received for this rank's x in the last `mean`: x itself, unless it was coded."""


# The arithmetic of `mean`, shared by all implementations so that they agree bitwise. The weight is appended to the
# vector, and both are scaled by a power of two, which is exact and makes the weights of 2^k workers add up to 1.


def _scale(size: int) -> float:
    return 2.0 ** -math.ceil(math.log2(size))


def weighted(x: Tensor, weight: float, size: int, out: Tensor) -> Tensor:
    """Fill `out` [P + 1 or more] with what a rank adds to the sum: x, then 1, then zeros, all times its weight."""
    if not (0.0 <= weight < math.inf and x.is_floating_point()):
        raise UsageError(f"mean: expected floating point, 0 <= weight < inf; found {x.dtype} and {weight}")
    if weight:
        factor = weight * _scale(size)
        torch.mul(x.reshape(-1), factor, out=out[: x.numel()])
        out[x.numel()] = factor
        out[x.numel() + 1 :] = 0.0
        return out
    return out.zero_()


def rank_ordered_sum(terms: Sequence[Tensor]) -> Tensor:
    """Return terms[0] + terms[1] + ..., added in this order: the rounding is always the same."""
    total = terms[0].clone()
    for term in terms[1:]:
        total += term
    return total


def divided(total: Tensor, like: Tensor, size: int) -> tuple[Tensor, float]:
    """Return (mean, sum of weights) from the sum of `weighted` vectors; reuses the memory of `total`."""
    weight = float(total[like.numel()])
    if weight == 0.0:
        raise CommError("mean: every rank had weight 0, so there is nothing to average")
    mean = total[: like.numel()].view(like.shape)
    return mean if weight == 1.0 else mean.div_(weight), weight / _scale(size)


def checked_src(src: int, size: int) -> int:
    """Return `src` if it is a rank, else raise UsageError."""
    if not 0 <= src < size:
        raise UsageError(f"broadcast: expected src in 0..{size - 1}, found {src}")
    return src


def checked_source(source: Sequence[int], size: int) -> list[int]:
    """Return `source` as a list if it is a permutation of range(size), else raise UsageError."""
    if sorted(source) != list(range(size)):
        raise UsageError(f"permute: expected a permutation of 0..{size - 1}, found {list(source)}")
    return list(source)


def checked_rows(x: Tensor, size: int) -> Tensor:
    """Return x if it has one row for each rank, else raise UsageError."""
    if x.dim() < 1 or len(x) != size:
        raise UsageError(f"all_to_all: expected {size} rows, one for each rank, found shape {list(x.shape)}")
    return x
