"""Coding in which each tensor of a vector begins a new group of elements."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from swarmstep.comm.base import Comm
from swarmstep.comm.codec import Coding, Shapes
from swarmstep.comm.error_feedback import CodecState, ErrorFeedback
from swarmstep.comm.scratch import Scratch

if TYPE_CHECKING:
    from swarmstep.comm.elementwise import Elementwise


class Aligned(Coding):
    """`ErrorFeedback` on vectors in which zeros follow each tensor, up to the next multiple of `codec.align`.

    Args:
        codec: how elements become bytes; it needs a reference.
        reference: the first reference vector [n], equal on all ranks.
        shapes: of the tensors in it.
        size: of the group.
        scratch: for intermediate results.
    """

    def __init__(self, codec: Elementwise, reference: Tensor, shapes: Shapes, size: int, scratch: Scratch) -> None:
        self._sizes = [math.prod(shape) for shape in shapes]
        self._padded = [-(-count // codec.align) * codec.align for count in self._sizes]
        self._scratch = scratch
        self._inner = ErrorFeedback(codec, self._spread(reference).clone(), size, scratch, referenced=True)

    def _spread(self, x: Tensor) -> Tensor:
        """Return x [n] with its zeros, in a scratch buffer."""
        padded = self._scratch.floats("spread", sum(self._padded)).zero_()
        for part, tensor in zip(padded.split(self._padded), x.split(self._sizes), strict=True):
            part[: len(tensor)] = tensor
        return padded

    def _gathered(self, padded: Tensor, out: Tensor) -> None:
        """Fill `out` [n] with what is not padding."""
        for part, tensor in zip(padded.split(self._padded), out.split(self._sizes), strict=True):
            tensor.copy_(part[: len(tensor)])

    @property
    def state(self) -> CodecState:
        return self._inner.state

    def commit(self, reference: Tensor) -> None:
        self._inner.commit(self._spread(reference))
        self.staged_length = 0

    def discard(self) -> None:
        self._inner.discard()
        self.staged_length = 0

    def staged(self) -> dict[str, Tensor]:
        return self._inner.staged()

    def stage(self, staged: Mapping[str, Tensor]) -> None:
        self._inner.stage(staged)
        self.staged_length = sum(self._sizes) if self._inner.staged_length else 0

    def mean(self, comm: Comm, x: Tensor, weight: float, out: Tensor) -> float:
        found = self._scratch.floats("found", sum(self._padded))
        total = self._inner.mean(comm, self._spread(x), weight, found)
        self._gathered(found, out)
        self.staged_length = len(x) if self._inner.staged_length else 0
        return total

    def given(self, out: Tensor) -> None:
        found = self._scratch.floats("found", sum(self._padded))
        self._inner.given(found)
        self._gathered(found, out)

    def size(self, n: int) -> int:
        return self._inner.size(sum(self._padded))

    def encode(self, vectors: Tensor) -> Tensor:
        rows = self._scratch.bytes("rows of codes", len(vectors) * self.size(vectors.shape[1])).view(
            len(vectors), -1
        )
        for vector, row in zip(vectors, rows, strict=True):
            row.copy_(self._inner.encode(self._spread(vector).view(1, -1))[0])
        return rows

    def decode(self, row: Tensor, out: Tensor) -> None:
        found = self._scratch.floats("found", sum(self._padded))
        self._inner.decode(row, found)
        self._gathered(found, out)
