"""Any Comm, with float32 vectors coded on the wire; what coding takes from a vector is sent the next time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from swarmstep.arguments import check_type
from swarmstep.comm.base import Comm
from swarmstep.comm.buffer_pool import BufferPool
from swarmstep.comm.codec import Codec, Shapes
from swarmstep.comm.scratch import Scratch
from swarmstep.errors import UsageError


class Coded(Comm):
    """Any Comm whose float32 vectors travel coded; results are equal bitwise on every implementation.

    With a reference, a common vector that `commit` replaces, vectors [P] are coded as differences from it, and
    every other tensor passes through unchanged. Without one, every float32 tensor is coded as it is. Float64 and
    integers (losses, votes) always pass through, and so does everything in a group of one.

    With most codecs `mean` codes twice, with error feedback at both places, like DeepSpeed's compressed
    all-reduce: each rank sends its difference plus what coding took from the last one, in chunks, each to the rank
    that averages it; that rank divides, adds what coding took from its chunk the last time, and sends the coded
    chunk to all. With S = `codec.size(chunk_length(codec, n, W))` each rank sends (W-1) (4 + 2 S) bytes: a chunk
    travels with its float32 weight in front. `LowRank` takes exact means of factors instead. The other verbs have
    no feedback: `gather`, `broadcast` and `permute` send the bytes of one coded vector instead of 4 n;
    `all_to_all` codes each row.

    The last `exact` elements of each vector [P] always travel as they are: running statistics are few, and a
    variance that coding made negative is none.

    No verb changes `state`: `mean` stages what `commit` makes current.

    Args:
        comm: the group.
        codec: how vectors become bytes.
        like: the float32 vector [P] that all ranks start from, equal on all: the first reference.
        exact: how many of its last elements travel as they are.
        shapes: of the tensors in the others, in their order (empty: they are one vector).
        referenced: whether there is a reference; without it there is no error feedback either.
        reuse: whether results are valid only until the next `recycle`.

    Raises:
        UsageError: `like` is not float32, or the codec needs a reference and `referenced` is false.
    """

    def __init__(
        self,
        comm: Comm,
        codec: Codec,
        like: Tensor,
        *,
        exact: int = 0,
        shapes: Shapes = (),
        referenced: bool = True,
        reuse: bool = False,
    ) -> None:
        check_type("Coded: comm", comm, Comm)
        check_type("Coded: codec", codec, Codec)
        check_type("Coded: like", like, Tensor)
        if like.dtype != torch.float32:
            raise UsageError(f"codecs need a float32 vector, found {like.dtype}")
        if codec.needs_reference and not referenced:
            raise UsageError(f"{codec} needs a reference, which this method does not have; use bfloat16 or int8")
        self._comm = comm
        self._codec = codec
        self.rank = comm.rank
        self.size = comm.size
        self._referenced, self._exact, self._whole = referenced, exact, like.numel()
        self._scratch, self._device = Scratch(like.device), like.device
        reference = like.detach().reshape(-1)[: like.numel() - exact if referenced else 0].clone()
        self._coding = codec.coding(
            reference, shapes or [reference.shape], comm.size, self._scratch, referenced=referenced
        )
        self._length = len(reference)
        self._pool = BufferPool(reuse=reuse)
        self._parts: dict[str, Coded] = {}

    @property
    def state(self) -> NamedTuple:
        """What a checkpoint keeps: tensors that only `commit` changes, in place."""
        return self._coding.state

    def commit(self, reference: Tensor) -> None:
        """End the round: keep the errors of its last mean, and take the new common vector [P] as reference."""
        self._coding.commit(reference[: len(reference) - self._exact])

    def discard(self) -> None:
        """Begin a round: drop what the means of the last one have staged."""
        self._coding.discard()

    def staged(self) -> dict[str, Tensor]:
        """Return copies of what `commit` would make current: for a checkpoint in the middle of a round."""
        return self._coding.staged()

    def stage(self, staged: Mapping[str, Tensor]) -> None:
        """Go on in the middle of a round, from what `staged` returned."""
        self._coding.stage(staged)

    def recycle(self) -> None:
        """Let the memory of all results be reused, if `reuse` was set; of the coded parts, too."""
        self._pool.recycle()
        for part in self._parts.values():
            part._pool.recycle()

    def clock(self) -> float:
        return self._comm.clock()

    def mean(self, x: Tensor, weight: float = 1.0) -> tuple[Tensor, float]:
        n, exact = self._parts_of(x, x.numel())
        if not self._codes(x, n):
            return self._comm.mean(x, weight)
        own_weight = float(torch.tensor(weight, dtype=torch.float32))
        if not 0.0 <= own_weight < math.inf:
            raise UsageError(f"mean: expected 0 <= weight < inf, found {weight}")
        self.discard()  # the buffers are about to be written
        flat, result = x.reshape(-1), self._pool.take((n + exact,), x)
        total = self._coding.mean(self._comm, flat[:n], own_weight, result[:n])
        if exact:
            result[n:] = self._comm.mean(flat[n:], weight)[0]
        return result.view(x.shape), total

    def sent(self, x: Tensor) -> Tensor:
        n, exact = self._parts_of(x, x.numel())
        if not n or n != self._coding.staged_length or not self._codes(x, n):
            return self._comm.sent(x)
        result = self._pool.take((n + exact,), x)
        self._coding.given(result[:n])
        result[n:] = x.reshape(-1)[n:]
        return result.view(x.shape)

    def gather(self, x: Tensor) -> Tensor:
        n, exact = self._parts_of(x, x.numel())
        if not self._codes(x, n):
            return self._comm.gather(x)
        rows = self._comm.gather(self._encoded(x.reshape(1, -1), n).view(-1))
        tails = self._comm.gather(x.reshape(-1)[n:]) if exact else None
        return self._decoded(rows, tails, x, n).view(self.size, *x.shape)

    def broadcast(self, x: Tensor, src: int) -> Tensor:
        n, exact = self._parts_of(x, x.numel())
        if not self._codes(x, n):
            return self._comm.broadcast(x, src)
        if self.rank == src:
            code = self._encoded(x.reshape(1, -1), n)
        else:
            code = self._scratch.bytes("code", self._coding.size(n))
        row = self._comm.broadcast(code.view(1, -1), src)
        tails = self._comm.broadcast(x.reshape(1, -1)[:, n:], src) if exact else None
        return self._decoded(row, tails, x, n).view(x.shape)

    def permute(self, x: Tensor, source: Sequence[int]) -> Tensor:
        n, exact = self._parts_of(x, x.numel())
        if not self._codes(x, n):
            return self._comm.permute(x, source)
        rows = self._comm.permute(self._encoded(x.reshape(1, -1), n), source)
        tails = self._comm.permute(x.reshape(1, -1)[:, n:], source) if exact else None
        return self._decoded(rows, tails, x, n).view(x.shape)

    def all_to_all(self, x: Tensor) -> Tensor:
        n, exact = self._parts_of(x, x.numel() // self.size)
        if x.dim() < 1 or len(x) != self.size or not self._codes(x, n):
            return self._comm.all_to_all(x)
        vectors = x.reshape(self.size, n + exact)
        rows = self._comm.all_to_all(self._encoded(vectors, n))
        tails = self._comm.all_to_all(vectors[:, n:].contiguous()) if exact else None
        return self._decoded(rows, tails, x, n).view(x.shape)

    def split(self, color: int, name: str = "") -> Coded:
        """Return a Comm that codes without a reference: what a part agrees on is not common to all ranks.

        Raises:
            UsageError: the codec needs a reference.
        """
        if name in self._parts:
            return self._parts[name]
        if self._codec.needs_reference:
            raise UsageError(
                f"{self._codec} needs a reference, which a part of a group does not have; use bfloat16 or int8"
            )
        like = torch.empty(1, device=self._device).expand(self._whole)
        part = Coded(
            self._comm.split(color, name),
            self._codec,
            like,
            exact=self._exact,
            referenced=False,
            reuse=self._pool.reuse and bool(name),
        )
        if name:
            self._parts[name] = part
        return part

    def _parts_of(self, x: Tensor, n: int) -> tuple[int, int]:
        """Return how many elements of a vector of n come first, to be coded, and how many exact ones follow."""
        exact = self._exact if n == self._whole else 0
        return n - exact, exact

    def _codes(self, x: Tensor, n: int) -> bool:
        """Return whether a tensor with vectors of n elements is coded; the same on all ranks."""
        if x.dtype != torch.float32 or x.device != self._device or self.size == 1:
            return False
        return n > 0 and (not self._referenced or n == self._length)

    def _encoded(self, vectors: Tensor, n: int) -> Tensor:
        """Return the first n elements of each row as bytes, in a scratch buffer."""
        return self._coding.encode(vectors[:, :n])

    def _decoded(self, rows: Tensor, tails: Tensor | None, like: Tensor, n: int) -> Tensor:
        """Return the vectors whose first n elements rows of bytes encode, with the exact elements behind them."""
        exact = tails.shape[1] if tails is not None else 0
        result = self._pool.take((len(rows), n + exact), like)
        for row, out in zip(rows, result, strict=True):
            self._coding.decode(row, out[:n])
        if tails is not None:
            result[:, n:] = tails
        return result
