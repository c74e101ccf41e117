"""SparseLoCo's codec: of each chunk of a tensor a few elements in two bits each, and the errors with a decay."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, final

import torch
from torch import Tensor

from swarmstep.comm.base import Comm
from swarmstep.comm.codec import Codec, Coding, Shapes, take_over
from swarmstep.comm.error_feedback import WEIGHT
from swarmstep.comm.low_rank import ordered_sum
from swarmstep.comm.packing import bins_of, packed_bins, packed_places, places_of
from swarmstep.comm.scratch import Scratch
from swarmstep.errors import CommError, UsageError
from swarmstep.ownership import Own, Shared

FLOAT = 4  # bytes of a float32
CHUNK = 4096  # elements that 12 bits can number
BINS = 4  # that two bits can number
RANGE = 6.0  # width of all bins, in standard deviations
BITS = (2, 32)
OVER = ("senders", "workers")


@final
@dataclass(frozen=True)
class SparseLoCo(Codec):
    """The largest elements of each chunk, in 2 bits, with 12 bits for their places; the same number in each round.

    ::

        e   = b e + (x_i - reference)          b = decay
        c   = quantize(top-k of each chunk of e)
        e   = e - c                            what was not sent
        mean = reference + mean_i c_i          over the workers that have sent this element, or over all

    A chunk is `chunk` elements of one tensor in a row; a tensor's last one may be shorter, and keeps as many.
    Quantizing splits a tensor's kept values into four bins around their mean, 1.5 standard deviations wide; each
    becomes the mean of its bin. All workers' packets have the same length, and each worker gets all of them.

    Args:
        kept: of each chunk, at least 1.
        chunk: elements, 1 to 4096.
        bits: of a value: 2, or 32, which quantizes nothing.
        decay: b, of the error that is kept, 0 to 1.
        clip: shorten what a worker sends of a tensor to the median norm of all that send, where it is longer. It
            is for workers with like data: where most have little to learn, the one that has is the longest.
        over: what a mean divides by: the weights of the "senders" of an element, or those of all "workers".

    Raises:
        UsageError: an argument is out of its range.

    Cost: with K kept elements in T tensors a packet has 4 + 16 T + 3 ceil(K/2) + ceil(K/4) bytes, at the defaults
    14 bits of an element that is kept: 1/146.3 of float32 in a large tensor. A mean sends (W-1) packets from each
    worker, in place of 8 (W-1)/W (P + 1) bytes: 2/W of that factor.

    Source: Sarfi et al., Communication Efficient LLM Pre-training with SparseLoCo, arXiv 2508.15706. The authors'
    code (templar) has the defaults, the bins, the clip and the mean over senders; its Algorithm 1 divides by all
    workers. Ours: consecutive elements as a chunk (there: blocks of at most 64 x 64), plain 12-bit places, and an
    outer step that is the strategy's: `DiLoCo` with momentum 0 and lr 1 (there 0.4 to 1).
    """

    needs_reference: ClassVar[bool] = True
    kept: int = 64
    chunk: int = CHUNK
    bits: int = 2
    decay: float = 0.95
    clip: bool = False
    over: str = "senders"

    def __post_init__(self) -> None:
        if not 1 <= self.chunk <= CHUNK or self.kept < 1:
            raise UsageError(
                f"SparseLoCo: expected chunk 1 to {CHUNK}, kept at least 1, found {self.chunk} and {self.kept}"
            )
        if self.bits not in BITS or self.over not in OVER:
            raise UsageError(
                f"SparseLoCo: expected bits 2 or 32 and over {' or '.join(OVER)}, found {self.bits} and "
                f"{self.over!r}"
            )
        if not 0.0 <= self.decay <= 1.0:
            raise UsageError(f"SparseLoCo: decay: expected 0 to 1, found {self.decay}")

    def chunks(self, start: int, size: int) -> Iterator[tuple[int, int, int, int]]:
        """Yield (start, length, number, kept of each) of a tensor's whole chunks, and of its last short one."""
        rows, rest = divmod(size, self.chunk)
        if rows:
            yield start, self.chunk, rows, min(self.kept, self.chunk)
        if rest:
            yield start + size - rest, rest, 1, min(self.kept, rest)

    def packet(self, sizes: Sequence[int]) -> int:
        """Return the bytes of a packet, without the weight in front, for tensors of these sizes."""
        K = sum(rows * k for size in sizes for _, _, rows, k in self.chunks(0, size))
        values = BINS * FLOAT * len(sizes) + (K + 3) // 4 if self.bits == 2 else FLOAT * K
        return values + 3 * ((K + 1) // 2)

    def coding(
        self, reference: Tensor, shapes: Shapes, size: int, scratch: Scratch, *, referenced: bool
    ) -> Coding:
        return Packets(self, reference, shapes, scratch)


class SparseState(NamedTuple):
    """What the codec remembers between two rounds."""

    reference: Shared  # [P]: differences from it are coded
    residual: Own  # [P]: e, what this rank has not sent


class _Content(NamedTuple):
    """What a packet says: where [K] and what [K], tensor after tensor."""

    places: Tensor
    values: Tensor


class Packets(Coding):
    """The mean of sparse packets, each with the same number of elements.

    Args:
        codec: the parameters.
        reference: the first reference vector [P], equal on all ranks.
        shapes: of the tensors in it.
        scratch: for the staged errors and intermediate results.
    """

    def __init__(self, codec: SparseLoCo, reference: Tensor, shapes: Shapes, scratch: Scratch) -> None:
        self._codec, self._scratch = codec, scratch
        lengths = [math.prod(shape) for shape in shapes]
        if sum(lengths) != len(reference):
            raise UsageError(f"SparseLoCo: shapes of {sum(lengths)} elements for a vector of {len(reference)}")
        starts = itertools.accumulate(lengths, initial=0)
        self._chunks = [[*codec.chunks(start, size)] for start, size in zip(starts, lengths, strict=False)]
        self._size = codec.packet(lengths)
        counts = [sum(k * rows for _, _, rows, k in chunks) for chunks in self._chunks]
        self._cuts = [0, *itertools.accumulate(counts)]  # of the tensors in the content of a packet
        # For each element of a packet, where its chunk begins, and the last place within it.
        bases: list[Tensor] = []
        for start, length, rows, k in itertools.chain(*self._chunks):
            first = start + length * torch.arange(rows).repeat_interleave(k)
            bases.append(torch.stack([first, torch.full_like(first, length - 1)]))
        self._bases, self._last = torch.cat([torch.zeros(2, 0), *bases], 1).long().to(reference.device)
        self._state = SparseState(reference, torch.zeros_like(reference))

    @property
    def state(self) -> SparseState:
        return self._state

    def commit(self, reference: Tensor) -> None:
        take_over(self._state.reference, reference)
        if self.staged_length:
            self._state.residual.copy_(self._scratch.floats("residual", self.staged_length))
        self.discard()

    def discard(self) -> None:
        self.staged_length = 0

    def staged(self) -> dict[str, Tensor]:
        n = self.staged_length
        return {"residual": self._scratch.floats("residual", n).clone()} if n else {}

    def stage(self, staged: Mapping[str, Tensor]) -> None:
        self.staged_length = len(staged.get("residual", ()))
        for name, value in staged.items():
            self._scratch.floats(name, len(value)).copy_(value)

    def mean(self, comm: Comm, x: Tensor, weight: float, out: Tensor) -> float:
        packet = self._packet(len(x))
        if weight:
            error = self._scratch.floats("residual", len(x))
            torch.mul(self._state.residual, self._codec.decay, out=error).add_(x).sub_(self._state.reference)
            packet[:WEIGHT] = torch.tensor([weight], dtype=torch.float32, device=x.device).view(torch.uint8)
            self._encode(error, packet[WEIGHT:])
            content = self._decode(packet[WEIGHT:])
            error[content.places] -= content.values
        else:
            packet.zero_()
        rows = comm.gather(packet)
        weights = rows[:, :WEIGHT].clone(memory_format=torch.contiguous_format).view(torch.float32).view(-1)
        senders = [(w, self._decode(row[WEIGHT:])) for w, row in zip(weights.tolist(), rows, strict=True) if w]
        if not senders:
            raise CommError("mean: every rank had weight 0, so there is nothing to average")
        total = math.fsum(w for w, _ in senders)
        self._average(self._clipped(senders) if self._codec.clip else senders, total, out)
        out.add_(self._state.reference)
        self.staged_length = len(x) if weight else 0
        return total

    def given(self, out: Tensor) -> None:
        self.decode(self._packet(self.staged_length)[WEIGHT:], out)

    def size(self, n: int) -> int:
        return self._size

    def encode(self, vectors: Tensor) -> Tensor:
        count = self.size(vectors.shape[1])
        rows = self._scratch.bytes("code", len(vectors) * count).view(len(vectors), count)
        for vector, row in zip(vectors, rows, strict=True):
            self._encode(vector - self._state.reference, row)
        return rows

    def decode(self, row: Tensor, out: Tensor) -> None:
        content = self._decode(row)
        out.copy_(self._state.reference)
        out[content.places] += content.values

    def _packet(self, n: int) -> Tensor:
        """Return the buffer of this rank's packet: its weight and the coded vector."""
        return self._scratch.bytes("packet", WEIGHT + self.size(n))

    def _encode(self, e: Tensor, out: Tensor) -> None:
        """Fill `out` with what the top of each chunk of e [P] becomes."""
        tables = list[Tensor]()
        places, coded = list[Tensor](), list[Tensor]()
        for of_tensor in self._chunks:
            found = list[Tensor]()
            for start, length, rows, k in of_tensor:
                chunks = e[start : start + rows * length].view(rows, length)
                top = chunks.abs().topk(k, sorted=False).indices.sort().values
                places.append(top.view(-1))
                found.append(chunks.gather(1, top).view(-1))
            values = torch.cat(found) if found else e[:0]
            if self._codec.bits == 2:
                table, values = _quantized(values)
                tables.append(table)
            coded.append(values)
        packed, values = packed_places(torch.cat([*places, self._bases[:0]])), torch.cat([*coded, e[:0]])
        if self._codec.bits == 2:
            parts = [torch.cat([*tables, e[:0]]).view(torch.uint8), packed, packed_bins(values.long())]
        else:
            parts = [packed, values.view(torch.uint8)]
        out.copy_(torch.cat(parts))

    def _decode(self, row: Tensor) -> _Content:
        """Return what a packet without its weight says; places that do not exist are taken for the last ones."""
        K, tables = len(self._bases), len(self._chunks)
        head = BINS * FLOAT * tables if self._codec.bits == 2 else 0
        tail = head + 3 * ((K + 1) // 2)
        places = torch.minimum(places_of(row[head:tail])[:K], self._last) + self._bases
        if self._codec.bits == 32:
            return _Content(places, row[tail:].clone().view(torch.float32))
        bins, table = bins_of(row[tail:])[:K], row[:head].clone().view(torch.float32).view(tables, BINS)
        parts = [table[t][bins[a:b]] for t, (a, b) in enumerate(itertools.pairwise(self._cuts))]
        return _Content(places, torch.cat([*parts, table.new_zeros(0)]))

    def _clipped(self, senders: list[tuple[float, _Content]]) -> list[tuple[float, _Content]]:
        """Return the contents with each tensor's values no longer than the (lower) median of the senders'."""
        cuts = [slice(a, b) for a, b in itertools.pairwise(self._cuts) if b > a]
        norms = torch.stack(  # [senders, tensors], the same bits on all ranks
            [torch.stack([ordered_sum(c.values[cut].double().square()) for cut in cuts]) for _, c in senders]
        ).sqrt()
        middle = norms.median(0).values
        factors = torch.where(norms > middle, middle / norms, 1.0).float()
        for (_, content), row in zip(senders, factors, strict=True):
            for factor, cut in zip(row, cuts, strict=True):
                content.values[cut] *= factor
        return senders

    def _average(self, senders: list[tuple[float, _Content]], total: float, out: Tensor) -> None:
        """Fill `out` with the mean difference, added in rank order."""
        out.zero_()
        sent = self._scratch.floats("sent", len(out)).zero_() if self._codec.over == "senders" else None
        for weight, content in senders:
            out.index_add_(0, content.places, content.values * weight)
            if sent is not None:
                sent.index_add_(0, content.places, torch.full_like(content.values, weight))
        if sent is None:
            out.div_(total)
        else:
            out.div_(sent.masked_fill_(sent == 0.0, 1.0))


def _quantized(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the values [BINS] of the bins, float32, and each value's bin, as int64."""
    exact = values.double()
    centered = exact - exact.sum() / max(1, len(exact))
    width = RANGE / BINS * math.sqrt(float(centered.square().sum()) / max(1, len(exact) - 1))
    if not 0.0 < width < math.inf:
        width = 1.0
    bins = (centered / width + BINS // 2).round_().clamp_(0, BINS - 1)
    bins = torch.where(bins.isnan(), 0.0, bins).long()
    sums = torch.bincount(bins, exact, minlength=BINS)
    return (sums / torch.bincount(bins, minlength=BINS).clamp_(min=1)).float(), bins
