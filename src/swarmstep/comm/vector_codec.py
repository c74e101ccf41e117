"""Coding whole vectors in pieces, as differences from a reference where there is one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from swarmstep.comm.scratch import Scratch

if TYPE_CHECKING:
    from swarmstep.comm.elementwise import Elementwise


def chunk_length(codec: Elementwise, n: int, size: int) -> int:
    """Return how many of n elements each of `size` ranks averages: ceil(n / size), rounded up to whole blocks."""
    return codec.grain * math.ceil(n / (codec.grain * size))


class VectorCodec:
    """Codes vectors as differences from a reference, or as they are.

    Args:
        codec: how float32 elements become bytes.
        reference: a vector that is equal on all ranks (None: there is none).
        scratch: where intermediate results are kept.
    """

    def __init__(self, codec: Elementwise, reference: Tensor | None, scratch: Scratch) -> None:
        self.codec, self.reference, self.scratch = codec, reference, scratch

    def pieces(self, n: int) -> Iterator[tuple[int, int, slice]]:
        """Yield (start, end) of the pieces in which n elements are coded, and where the bytes of each are."""
        step = self.codec.piece(n)
        for start in range(0, n, step):
            end = min(n, start + step)
            offset = self.codec.size(start) if start else 0
            yield start, end, slice(offset, offset + self.codec.size(end - start))

    def encode(self, x: Tensor, start: int, count: int, out: Tensor, residual: Tensor | None = None) -> None:
        """Encode `count` elements of x from `start` on, and zeros past its end.

        Args:
            x: float32 [n].
            start: the first element.
            count: how many.
            out: uint8, receives the bytes.
            residual: [n] (None: no error feedback), is added before coding; what coding takes from the sum is left
                in the scratch buffer "residual".
        """
        for a, b, part in self.pieces(count):
            here = slice(start + a, min(len(x), start + b))
            present = max(0, here.stop - here.start)
            delta = self.scratch.floats("delta", b - a)
            values = delta[:present]
            if not present:
                self.codec.encode(delta.zero_(), out[part])
                continue
            if self.reference is not None:
                torch.sub(x[here], self.reference[here], out=values)
            else:
                values.copy_(x[here])
            if residual is not None:
                values.add_(residual[here])
            delta[present:] = 0.0
            self.codec.encode(delta, out[part])
            if residual is not None:
                decoded = self.scratch.floats("decoded", b - a)
                self.codec.decode(out[part], decoded)
                torch.sub(values, decoded[:present], out=self.scratch.floats("residual", len(x))[here])

    def encode_rows(self, x: Tensor) -> Tensor:
        """Return each row of x [k, n] as bytes [k, size(n)], in a scratch buffer."""
        k, n = x.shape
        rows = self.scratch.bytes("code", k * self.codec.size(n)).view(k, -1)
        for row, code in zip(x, rows, strict=True):
            self.encode(row, 0, n, code)
        return rows

    def decode(self, rows: Tensor, out: Tensor) -> Tensor:
        """Fill `out` [n] from the bytes of its chunks, one in each row, and add the reference."""
        n = len(out)
        chunk = n if len(rows) == 1 else chunk_length(self.codec, n, len(rows))
        for rank, row in enumerate(rows):
            for a, b, part in self.pieces(chunk):
                here = slice(rank * chunk + a, min(n, rank * chunk + b))
                if here.start >= n:
                    return out
                values = out[here]
                if len(values) == b - a:
                    self.codec.decode(row[part], values)
                else:
                    decoded = self.scratch.floats("decoded", b - a)
                    self.codec.decode(row[part], decoded)
                    values.copy_(decoded[: len(values)])
                if self.reference is not None:
                    values.add_(self.reference[here])
        return out
