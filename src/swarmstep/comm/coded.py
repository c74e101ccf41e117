"""Any Comm, with float32 vectors coded on their way; what the others lose of a vector is sent the next time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from swarmstep.comm.base import Comm, rank_ordered_sum
from swarmstep.comm.buffer_pool import BufferPool
from swarmstep.comm.codecs import Codec
from swarmstep.errors import CommError, UsageError
from swarmstep.ownership import Own, Place, Shared

WEIGHT = 4  # bytes of the float32 weight in front of each chunk


class CodecState(NamedTuple):
    """What coding remembers between two rounds; without a reference, all empty."""

    reference: Shared  # [P]: differences from it are coded
    residual: Own  # [P]: what coding has taken from its vectors and not given back
    shortfall: Place  # [chunk]: the same for the chunk of the mean that it adds up


@dataclass(slots=True)
class _Staged:
    """What the last mean of this round has left in the buffers, for `commit`."""

    mean: bool = False  # a new shortfall
    sent: int = 0  # of how many elements this rank's rows and its new residual are; 0: of none


class _Room:
    """Buffers by name, allocated once at the largest length asked for."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._held: dict[str, Tensor] = {}

    def take(self, name: str, count: int, dtype: torch.dtype) -> Tensor:
        """Return the first `count` elements of the buffer; their content is what was left there."""
        held = self._held.get(name)
        if held is None or len(held) < count:
            held = self._held[name] = torch.empty(count, dtype=dtype, device=self._device)
        return held[:count]

    def bytes(self, name: str, count: int) -> Tensor:
        """Return a buffer of uint8."""
        return self.take(name, count, torch.uint8)

    def floats(self, name: str, count: int) -> Tensor:
        """Return a buffer of float32."""
        return self.take(name, count, torch.float32)


def chunk_length(codec: Codec, n: int, size: int) -> int:
    """Return how many of n elements each of `size` ranks adds up: ceil(n / size), rounded up to whole blocks."""
    return codec.grain * math.ceil(n / (codec.grain * size))


class Coded(Comm):
    """Any Comm whose float32 vectors travel coded; the results are equal bitwise on every end.

    With a reference, a common vector that `commit` moves, the vectors [P] are coded as differences from it, and
    every other tensor passes through as it is. Without one, every float32 tensor is coded as it is. Float64 and
    integers (losses, votes) always pass through, and so does everything where a rank is alone.

    `mean` codes twice, with error feedback at both places, like DeepSpeed's compressed all-reduce: each rank sends
    its difference plus what coding took from the last one, in chunks, each to the rank that adds it up; that rank
    divides, adds what coding took from its chunk the last time, and sends the coded chunk to all. With S =
    `codec.size(chunk_length(codec, n, W))` each rank sends (W-1) (4 + 2 S) bytes: a chunk travels with its float32
    weight in front. The other verbs feed nothing back: of n elements `gather`, `broadcast` and `permute` send
    `codec.size(n)` bytes instead of 4 n; `all_to_all` codes each row.

    No verb changes `state`: `mean` stages what `commit` makes current.

    Args:
        comm: the group.
        codec: how vectors become bytes.
        like: the float32 vector that all ranks start from, equal on all: the first reference.
        referenced: whether there is a reference; without it there is no error feedback either.
        reuse: whether results live only until the next `recycle`.

    Raises:
        UsageError: `like` is not float32, or the codec needs a reference and shall have none.
    """

    def __init__(
        self, comm: Comm, codec: Codec, like: Tensor, *, referenced: bool = True, reuse: bool = False
    ) -> None:
        if like.dtype != torch.float32:
            raise UsageError(f"codecs need a float32 vector, found {like.dtype}")
        if codec.needs_reference and not referenced:
            raise UsageError(f"{codec} needs a reference, which there is not; use bfloat16 or int8")
        self._comm = comm
        self._codec = codec
        self.rank = comm.rank
        self.size = comm.size
        self._referenced = referenced
        reference = like.detach().reshape(-1)[: like.numel() if referenced else 0].clone()
        chunk = chunk_length(codec, len(reference), comm.size)
        self._state = CodecState(reference, torch.zeros_like(reference), reference.new_zeros(chunk))
        self._staged = _Staged()
        self._room = _Room(like.device)
        self._pool = BufferPool(reuse=reuse)
        self._parts: dict[str, Coded] = {}

    @property
    def state(self) -> CodecState:
        """What a checkpoint keeps: tensors that only `commit` changes, in place."""
        return self._state

    def commit(self, reference: Tensor) -> None:
        """End the round: keep what its last mean left over, and take the new common vector as reference."""
        if self._referenced:
            if reference.numel() != len(self._state.reference):
                raise UsageError(
                    f"commit: expected {len(self._state.reference)} elements, found {list(reference.shape)}"
                )
            self._state.reference.copy_(reference.reshape(-1))
            if self._staged.sent:
                self._state.residual.copy_(self._room.floats("residual", self._staged.sent))
            if self._staged.mean:
                self._state.shortfall.copy_(self._room.floats("sum", len(self._state.shortfall)))
        self.discard()

    def discard(self) -> None:
        """Begin a round: forget what the means of the last one have staged."""
        self._staged.mean, self._staged.sent = False, 0

    def staged(self) -> dict[str, Tensor]:
        """Return copies of what `commit` would make current: for a checkpoint in the middle of a round."""
        kept: dict[str, Tensor] = {}
        if not self._referenced:
            return kept
        if self._staged.sent:
            kept["residual"] = self._room.floats("residual", self._staged.sent).clone()
        if self._staged.mean:
            kept["shortfall"] = self._room.floats("sum", len(self._state.shortfall)).clone()
        return kept

    def stage(self, kept: Mapping[str, Tensor]) -> None:
        """Go on in the middle of a round, from what `staged` returned."""
        self._staged.mean, self._staged.sent = "shortfall" in kept, len(kept.get("residual", ()))
        for name, buffer in (("residual", "residual"), ("shortfall", "sum")):
            if name in kept:
                self._room.floats(buffer, len(kept[name])).copy_(kept[name])

    def clock(self) -> float:
        return self._comm.clock()

    def mean(self, x: Tensor, weight: float = 1.0) -> tuple[Tensor, float]:
        n = x.numel()
        if not self._codes(x, n):
            return self._comm.mean(x, weight)
        own = float(torch.tensor(weight, dtype=torch.float32))
        if not 0.0 <= own < math.inf:
            raise UsageError(f"mean: expected 0 <= weight < inf, found {weight}")
        self.discard()  # the buffers are about to be written
        theirs = self._comm.all_to_all(self._messages(x.reshape(-1), own))
        weights = theirs[:, :WEIGHT].clone(memory_format=torch.contiguous_format).view(torch.float32).view(-1)
        total = float(rank_ordered_sum(list(weights)))
        if total == 0.0:
            raise CommError("mean: every rank had weight 0, so there is nothing to average")
        chunk = self._added_up(
            theirs[:, WEIGHT:], weights.tolist(), total, chunk_length(self._codec, n, self.size)
        )
        result = self._decoded(self._comm.gather(chunk), self._pool.take((n,), x))
        self._staged.mean, self._staged.sent = True, n if own else 0
        return result.view(x.shape), total

    def sent(self, x: Tensor) -> Tensor:
        n = self._staged.sent
        if not n or n != x.numel() or not self._codes(x, n):
            return self._comm.sent(x)
        rows = self._rows(n)[:, WEIGHT:]
        return self._decoded(rows, self._pool.take((n,), x)).view(x.shape)

    def gather(self, x: Tensor) -> Tensor:
        n = x.numel()
        if not self._codes(x, n):
            return self._comm.gather(x)
        rows = self._comm.gather(self._coded(x.reshape(1, -1)).view(-1))
        return self._each_decoded(rows, x, n).view(self.size, *x.shape)

    def broadcast(self, x: Tensor, src: int) -> Tensor:
        n = x.numel()
        if not self._codes(x, n):
            return self._comm.broadcast(x, src)
        mine = self._coded(x.reshape(1, -1)) if self.rank == src else self._room.bytes("code", self._codec.size(n))
        return self._each_decoded(self._comm.broadcast(mine.view(1, -1), src), x, n).view(x.shape)

    def permute(self, x: Tensor, source: Sequence[int]) -> Tensor:
        n = x.numel()
        if not self._codes(x, n):
            return self._comm.permute(x, source)
        return self._each_decoded(self._comm.permute(self._coded(x.reshape(1, -1)), source), x, n).view(x.shape)

    def all_to_all(self, x: Tensor) -> Tensor:
        n = x.numel() // self.size
        if x.dim() < 1 or len(x) != self.size or not self._codes(x, n):
            return self._comm.all_to_all(x)
        rows = self._comm.all_to_all(self._coded(x.reshape(self.size, n)))
        return self._each_decoded(rows, x, n).view(x.shape)

    def split(self, color: int, name: str = "") -> Coded:
        """Return a Comm that codes without a reference: what a part agrees on is not common to all.

        Raises:
            UsageError: the codec needs a reference.
        """
        if name in self._parts:
            return self._parts[name]
        like = self._state.reference[:0]
        if self._codec.needs_reference:
            raise UsageError(
                f"{self._codec} needs a reference, which part of a group has not; use bfloat16 or int8"
            )
        part = Coded(self._comm.split(color, name), self._codec, like, referenced=False)
        part._pool = BufferPool(reuse=self._pool.reuse and bool(name))
        if name:
            self._parts[name] = part
        return part

    def recycle(self) -> None:
        """Let the memory of everything that the verbs have returned be reused, where `reuse` was asked for."""
        self._pool.recycle()
        for part in self._parts.values():
            part._pool.recycle()

    def _codes(self, x: Tensor, n: int) -> bool:
        """Whether a tensor with vectors of n elements is coded; the same on all ranks."""
        kind = x.dtype == torch.float32 and x.device == self._state.reference.device
        return kind and self.size > 1 and n > 0 and (not self._referenced or n == len(self._state.reference))

    def _rows(self, n: int) -> Tensor:
        """Return the buffer with this rank's messages in a mean of n elements, one row for each rank."""
        width = WEIGHT + self._codec.size(chunk_length(self._codec, n, self.size))
        return self._room.bytes("rows", self.size * width).view(self.size, width)

    def _messages(self, x: Tensor, weight: float) -> Tensor:
        """Return what this rank sends to each: its weight and the coded chunk. Leaves the new residual."""
        rows = self._rows(len(x))
        if not weight:
            return rows.zero_()
        rows[:, :WEIGHT] = torch.tensor([weight], dtype=torch.float32, device=x.device).view(torch.uint8)
        chunk = chunk_length(self._codec, len(x), self.size)
        for rank, row in enumerate(rows):
            self._encode(x, rank * chunk, chunk, row[WEIGHT:], feedback=self._referenced)
        return rows

    def _added_up(self, rows: Tensor, weights: list[float], total: float, chunk: int) -> Tensor:
        """Return the mean of this rank's chunk, coded. Leaves the new shortfall."""
        code = self._room.bytes("code", self._codec.size(chunk))
        staged = self._room.floats("sum", chunk)
        for a, b, part in self._pieces(chunk):
            mean, decoded = staged[a:b].zero_(), self._room.floats("decoded", b - a)
            for weight, row in zip(weights, rows, strict=True):
                if weight:
                    self._codec.decode(row[part], decoded)
                    # Not add_(alpha=...), which rounds once or twice, as the processor's instructions have it.
                    mean.add_(decoded if weight == 1.0 else decoded.mul_(weight))
            mean.div_(total)
            if self._referenced:
                mean.add_(self._state.shortfall[a:b])
            self._codec.encode(mean, code[part])
            if self._referenced:
                self._codec.decode(code[part], decoded)
                mean.sub_(decoded)
        return code

    def _pieces(self, n: int) -> Iterator[tuple[int, int, slice]]:
        """Yield (start, end) of the parts in which n elements are coded, and where their bytes are."""
        step = self._codec.piece(n)
        for a in range(0, n, step):
            b = min(n, a + step)
            start = self._codec.size(a) if a else 0
            yield a, b, slice(start, start + self._codec.size(b - a))

    def _coded(self, x: Tensor) -> Tensor:
        """Return each row of x [k, n] as bytes, in a buffer."""
        k, n = x.shape
        rows = self._room.bytes("code", k * self._codec.size(n)).view(k, -1)
        for row, code in zip(x, rows, strict=True):
            self._encode(row, 0, n, code)
        return rows

    def _each_decoded(self, rows: Tensor, like: Tensor, n: int) -> Tensor:
        """Return the vectors [k, n] that rows of bytes stand for."""
        result = self._pool.take((len(rows), n), like)
        for row, out in zip(rows, result, strict=True):
            self._decoded(row.view(1, -1), out)
        return result

    def _encode(self, x: Tensor, start: int, count: int, out: Tensor, *, feedback: bool = False) -> None:
        """Code `count` elements of x from `start` on, and zeros behind its end.

        Feedback adds the residual before, and stages the new one.
        """
        for a, b, part in self._pieces(count):
            here = slice(start + a, min(len(x), start + b))
            real = max(0, here.stop - here.start)
            delta = self._room.floats("delta", b - a)
            values = delta[:real]
            if not real:
                self._codec.encode(delta.zero_(), out[part])
                continue
            if self._referenced:
                torch.sub(x[here], self._state.reference[here], out=values)
            else:
                values.copy_(x[here])
            if feedback:
                values.add_(self._state.residual[here])
            delta[real:] = 0.0
            self._codec.encode(delta, out[part])
            if feedback:
                decoded = self._room.floats("decoded", b - a)
                self._codec.decode(out[part], decoded)
                torch.sub(values, decoded[:real], out=self._room.floats("residual", len(x))[here])

    def _decoded(self, rows: Tensor, out: Tensor) -> Tensor:
        """Fill `out` [n] from the bytes of its chunks, one row each, and add the reference."""
        n = len(out)
        chunk = n if len(rows) == 1 else chunk_length(self._codec, n, len(rows))
        for rank, row in enumerate(rows):
            for a, b, part in self._pieces(chunk):
                here = slice(rank * chunk + a, min(n, rank * chunk + b))
                if here.start >= n:
                    return out
                values = out[here]
                if len(values) == b - a:
                    self._codec.decode(row[part], values)
                else:
                    decoded = self._room.floats("decoded", b - a)
                    self._codec.decode(row[part], decoded)
                    values.copy_(decoded[: len(values)])
                if self._referenced:
                    values.add_(self._state.reference[here])
        return out
