"""Codecs of single elements or small groups of them, which code any vector in pieces."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

from torch import Tensor

from swarmstep.comm.aligned import Aligned
from swarmstep.comm.codec import Codec, Coding, Shapes
from swarmstep.comm.error_feedback import ErrorFeedback
from swarmstep.comm.scratch import Scratch

PIECE = 1 << 16  # elements coded at a time: with their scratch memory they fit into a core's cache


@dataclass(frozen=True)
class Elementwise(Codec):
    """A codec of any vector of float32 elements, which can be cut in pieces.

    All operations are elementwise or a maximum, so results depend neither on alignment nor on the number of
    threads. Numbers are in the machine's byte order. NaN and infinity are not hidden: what shares a scale with
    them decodes to numbers that are not finite either.
    """

    @property
    @abstractmethod
    def grain(self) -> int:
        """How many elements belong together: vectors are cut at multiples of this."""

    @property
    def align(self) -> int:
        """Tensors of a vector begin at multiples of this, so that what belongs together is of one tensor."""
        return 1

    def piece(self, n: int) -> int:
        """Return how many of n elements may be coded at a time; the bytes of the pieces are concatenated."""
        return min(n, max(1, PIECE // self.grain) * self.grain)

    def coding(
        self, reference: Tensor, shapes: Shapes, size: int, scratch: Scratch, *, referenced: bool
    ) -> Coding:
        if self.align == 1:
            return ErrorFeedback(self, reference, size, scratch, referenced=referenced)
        return Aligned(self, reference, shapes, size, scratch)

    @abstractmethod
    def size(self, n: int) -> int:
        """Return how many bytes n elements take."""

    @abstractmethod
    def encode(self, x: Tensor, out: Tensor) -> None:
        """Write x, float32 [n], into `out`, uint8 [size(n)], which may have any alignment."""

    @abstractmethod
    def decode(self, data: Tensor, out: Tensor) -> None:
        """Decode `data`, uint8 [size(n)], into `out`, float32 [n]."""
