"""Codecs: float32 vectors as fewer bytes, the same bytes on every machine; and all of them by their texts."""

from __future__ import annotations

import itertools
import math
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from swarmstep import spec_help
from swarmstep.comm.codec import Codec
from swarmstep.comm.elementwise import PIECE, Elementwise
from swarmstep.comm.low_rank import LowRank
from swarmstep.comm.nm_codec import NMCodec
from swarmstep.comm.sparseloco import SparseLoCo
from swarmstep.errors import UsageError

SCALE = 4  # bytes of a float32 scale
SMALLEST = torch.finfo(torch.float32).tiny  # below it scales are denormal, and 1 / scale may be infinite
MAGNITUDE = 0x7FFFFFFF  # all bits of a float32 but its sign


@final
@dataclass(frozen=True)
class Bfloat16(Elementwise):
    """Each element rounded to the nearest bfloat16, ties to even: 8 bits of precision, the range of float32.

    n elements take 2 n bytes. Magnitudes above 3.39e38 round to infinity.
    """

    needs_reference: ClassVar[bool] = False

    @property
    def grain(self) -> int:
        return 1

    def size(self, n: int) -> int:
        return 2 * n

    def encode(self, x: Tensor, out: Tensor) -> None:
        for a in range(0, len(x), PIECE):
            part = x[a : a + PIECE].to(torch.bfloat16)
            out[2 * a : 2 * a + 2 * len(part)] = part.view(torch.uint8)

    def decode(self, data: Tensor, out: Tensor) -> None:
        for a in range(0, len(out), PIECE):
            part = data[2 * a : 2 * (a + PIECE)].clone()  # a view as bfloat16 would need alignment
            out[a : a + PIECE] = part.view(torch.bfloat16)


@dataclass(frozen=True)
class _Blocks(Elementwise):
    """Blocks with a scale each: the float32 scale, then the integers of the block, one block after another."""

    block: int

    def __post_init__(self) -> None:
        if self.block < 1:
            raise UsageError(f"{type(self).__name__}: expected block >= 1, found {self.block}")

    @property
    def grain(self) -> int:
        return self.block

    @abstractmethod
    def _bytes(self, m: int) -> int:
        """Return how many bytes the integers of a block of m elements take."""

    def size(self, n: int) -> int:
        full, rest = divmod(n, self.block)
        return full * (SCALE + self._bytes(self.block)) + bool(rest) * (SCALE + self._bytes(rest))

    def _rows(self, x: Tensor, data: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield a vector and its bytes in pieces, as blocks [k, m] and rows [k, SCALE + bytes]."""
        n = len(x)
        cuts = [*range(0, n - n % self.block, self.piece(n) or 1), n - n % self.block, n]
        for a, b in itertools.pairwise(cuts):
            if a < b:
                k = max(1, (b - a) // self.block)
                yield x[a:b].view(k, -1), data[self.size(a) : self.size(b)].view(k, -1)


@final
@dataclass(frozen=True)
class Int8(_Blocks):
    """Integers -127..127 times the scale of their block, its largest magnitude / 127.

    n elements take n + 4 ceil(n / block) bytes. The error of an element is at most half a scale. A block
    whose scale would be below 1.2e-38 becomes zeros; one above 3.4e38 may become infinite.
    """

    needs_reference: ClassVar[bool] = False
    block: int = 512

    def _bytes(self, m: int) -> int:
        return m

    def encode(self, x: Tensor, out: Tensor) -> None:
        scratch = x.new_empty(self.piece(len(x)))
        for blocks, rows in self._rows(x, out):
            integers, scales = _integers(blocks, 127, scratch)
            rows[:, :SCALE] = scales.view(torch.uint8)
            rows[:, SCALE:].view(torch.int8).copy_(integers)

    def decode(self, data: Tensor, out: Tensor) -> None:
        for blocks, rows in self._rows(out, data):
            torch.mul(rows[:, SCALE:].view(torch.int8), _scales(rows), out=blocks)


@final
@dataclass(frozen=True)
class Int4(_Blocks):
    """Integers -7..7, two in each byte, times the scale of their block, its largest magnitude / 7.

    Byte i of a block of m elements holds 8 + element i in its low half and 8 + element i + ceil(m / 2) in its high
    half. n elements take ceil(n / 2) + 4 ceil(n / block) bytes for an even block. The error of an element is at
    most half a scale. A block whose scale would be below 1.2e-38 becomes zeros.
    """

    needs_reference: ClassVar[bool] = True
    block: int = 128

    def _bytes(self, m: int) -> int:
        return (m + 1) // 2

    def encode(self, x: Tensor, out: Tensor) -> None:
        scratch = x.new_empty(self.piece(len(x)))
        for blocks, rows in self._rows(x, out):
            integers, scales = _integers(blocks, 7, scratch)
            half = self._bytes(blocks.shape[1])
            low, high = integers[:, :half], integers[:, half:]
            low.add_(8 + 16 * 8)
            low[:, : high.shape[1]].add_(high.mul_(16))
            rows[:, :SCALE] = scales.view(torch.uint8)
            rows[:, SCALE:] = low

    def decode(self, data: Tensor, out: Tensor) -> None:
        for blocks, rows in self._rows(out, data):
            pairs, scales = rows[:, SCALE:], _scales(rows)
            half = pairs.shape[1]
            rest = blocks.shape[1] - half
            torch.mul((pairs & 15).view(torch.int8).sub_(8), scales, out=blocks[:, :half])
            torch.mul((pairs[:, :rest] >> 4).view(torch.int8).sub_(8), scales, out=blocks[:, half:])


@final
@dataclass(frozen=True)
class TopK(Elementwise):
    """The k = max(1, ceil(fraction n)) largest magnitudes of the n elements; the others become zero.

    One float32 scale (the largest magnitude / 127), k ascending int32 positions, and k integers -127..127: 4 + 5 k
    bytes. Of equal magnitudes the first are kept. If the scale would be below 1.2e-38, all elements are zero.
    """

    needs_reference: ClassVar[bool] = True
    fraction: float = 0.02

    def __post_init__(self) -> None:
        if not 0.0 < self.fraction <= 1.0:
            raise UsageError(f"TopK: expected 0 < fraction <= 1, found {self.fraction}")

    @property
    def grain(self) -> int:
        return 1

    def piece(self, n: int) -> int:
        return n

    def kept(self, n: int) -> int:
        """Return how many of n elements are kept."""
        return min(n, max(1, math.ceil(self.fraction * n)))

    def size(self, n: int) -> int:
        return SCALE + 5 * self.kept(n)

    def encode(self, x: Tensor, out: Tensor) -> None:
        k = self.kept(len(x))
        if not k:
            out.zero_()
            return
        positions = _largest(x, k)
        values = x[positions].view(1, k)
        integers, scale = _integers(values, 127, torch.empty_like(values))
        out[:SCALE] = scale.view(torch.uint8).view(-1)
        out[SCALE : SCALE + 4 * k] = positions.to(torch.int32).view(torch.uint8)
        out[SCALE + 4 * k :].view(torch.int8).copy_(integers.view(-1))

    def decode(self, data: Tensor, out: Tensor) -> None:
        k = self.kept(len(out))
        positions = data[SCALE : SCALE + 4 * k].clone().view(torch.int32)
        scale = data[:SCALE].clone().view(torch.float32)
        out.zero_()
        out[positions.long()] = data[SCALE + 4 * k :].view(torch.int8) * scale


def parse(spec: str) -> Codec:
    """Return the codec of a specification such as "int8" or "topk:0.02".

    Raises:
        UsageError: `spec` is invalid; lists the valid forms.
    """
    plain: dict[str, Codec] = {"bfloat16": Bfloat16(), "int8": Int8(), "int4": Int4()}
    if spec in plain:
        return plain[spec]
    kind, _, number = spec.partition(":")
    try:
        if kind == "topk":
            return TopK(float(number))
        if kind == "rank":
            return LowRank(int(number))
        if kind == "nm":
            n, _, m = number.partition(":")
            return NMCodec(int(n), int(m))
        if kind == "sparseloco":
            kept, _, clip = number.partition(":")
            if clip in ("", "clip"):
                return SparseLoCo(int(kept or 64), clip=bool(clip))
    except (ValueError, UsageError):
        pass
    raise UsageError(f"unknown codec {spec!r}; expected one of {spec_help.CODECS}, with 0 < FRACTION <= 1")


def _integers(blocks: Tensor, top: int, scratch: Tensor) -> tuple[Tensor, Tensor]:
    """Return blocks [k, m] in units of their scales, rounded (in `scratch`), and the scales [k, 1]."""
    rounded = scratch.view(-1)[: blocks.numel()].view(blocks.shape)
    scales = torch.abs(blocks, out=rounded).amax(1, keepdim=True).div_(top)
    small = scales < SMALLEST
    scales.masked_fill_(small, 0.0)
    return torch.mul(blocks, scales.reciprocal().masked_fill_(small, 0.0), out=rounded).round_(), scales


def _scales(rows: Tensor) -> Tensor:
    """Return a copy of the scales [k, 1] at the front of the rows; a view would need alignment."""
    return rows[:, :SCALE].clone(memory_format=torch.contiguous_format).view(torch.float32)


def _largest(x: Tensor, k: int) -> Tensor:
    """Return the ascending positions of the k largest magnitudes; of equal ones, the first."""
    bits = x.view(torch.int32)  # without the sign, ordered like the magnitudes, with NaN above all
    # Sorting all of x is slow: estimate from a sample what the k largest exceed, and sort what does.
    sample = bits[:: max(1, len(x) // PIECE)] & MAGNITUDE
    few = min(len(sample), int(1.1 * k * len(sample) / len(x)) + 20)
    floor = max(1, int(sample.topk(few, sorted=False).values.min()))
    positions = _not_below(bits, floor)
    if len(positions) < k and floor > 1:
        floor = max(1, int((bits & MAGNITUDE).topk(k, sorted=False).values.min()))
        positions = _not_below(bits, floor)
    if len(positions) < k:  # all nonzero elements, and the first zeros
        zeros = (bits[:k] & MAGNITUDE == 0).nonzero().view(-1)
        return torch.cat([positions, zeros[: k - len(positions)]]).sort().values
    magnitudes = bits[positions] & MAGNITUDE
    least = magnitudes.topk(k, sorted=False).values.min()
    equal = magnitudes == least
    above = magnitudes > least
    return positions[above | (equal & (equal.cumsum(0) <= k - above.sum()))]


def _not_below(bits: Tensor, floor: int) -> Tensor:
    """Return the ascending positions at which the bits without the sign are at least `floor`."""
    positions = [
        ((bits[a : a + PIECE] & MAGNITUDE) >= floor).nonzero().view(-1).add_(a) for a in range(0, len(bits), PIECE)
    ]
    return torch.cat(positions)
