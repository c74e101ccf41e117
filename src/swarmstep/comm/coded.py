"""Any Comm, with float32 vectors coded on the wire; what coding takes from a vector is sent the next time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from swarmstep.arguments import check_type
from swarmstep.comm.base import Comm, rank_ordered_sum
from swarmstep.comm.buffer_pool import BufferPool
from swarmstep.comm.codecs import Codec
from swarmstep.comm.error_feedback import WEIGHT, CodecState, ErrorFeedback
from swarmstep.comm.vector_codec import Scratch, chunk_length
from swarmstep.errors import CommError, UsageError


class Coded(Comm):
    """Any Comm whose float32 vectors travel coded; results are equal bitwise on every implementation.

    With a reference, a common vector that `commit` replaces, vectors [P] are coded as differences from it, and
    every other tensor passes through unchanged. Without one, every float32 tensor is coded as it is. Float64 and
    integers (losses, votes) always pass through, and so does everything in a group of one.

    `mean` codes twice, with error feedback at both places, like DeepSpeed's compressed all-reduce: each rank sends
    its difference plus what coding took from the last one, in chunks, each to the rank that averages it; that rank
    divides, adds what coding took from its chunk the last time, and sends the coded chunk to all. With S =
    `codec.size(chunk_length(codec, n, W))` each rank sends (W-1) (4 + 2 S) bytes: a chunk travels with its float32
    weight in front. The other verbs have no feedback: of n elements `gather`, `broadcast` and `permute` send
    `codec.size(n)` bytes instead of 4 n; `all_to_all` codes each row.

    The last `exact` elements of each vector [P] always travel as they are: running statistics are few, and a
    variance that coding made negative is none.

    No verb changes `state`: `mean` stages what `commit` makes current.

    Args:
        comm: the group.
        codec: how vectors become bytes.
        like: the float32 vector [P] that all ranks start from, equal on all: the first reference.
        exact: how many of its last elements travel as they are.
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
        referenced: bool = True,
        reuse: bool = False,
    ) -> None:
        check_type("Coded: comm", comm, Comm)
        check_type("Coded: codec", codec, Codec)
        check_type("Coded: like", like, Tensor)
        if like.dtype != torch.float32:
            raise UsageError(f"codecs need a float32 vector, found {like.dtype}")
        if codec.needs_reference and not referenced:
            raise UsageError(f"{codec} needs a reference, and here there is none; use bfloat16 or int8")
        self._comm = comm
        self._codec = codec
        self.rank = comm.rank
        self.size = comm.size
        self._referenced, self._exact, self._whole = referenced, exact, like.numel()
        self._scratch = Scratch(like.device)
        reference = like.detach().reshape(-1)[: like.numel() - exact if referenced else 0].clone()
        self._feedback = ErrorFeedback(codec, reference, comm.size, self._scratch, referenced=referenced)
        self._vectors = self._feedback.vectors
        self._pool = BufferPool(reuse=reuse)
        self._parts: dict[str, Coded] = {}

    @property
    def state(self) -> CodecState:
        """What a checkpoint keeps: tensors that only `commit` changes, in place."""
        return self._feedback.state

    def commit(self, reference: Tensor) -> None:
        """End the round: keep the errors of its last mean, and take the new common vector [P] as reference."""
        self._feedback.commit(reference[: len(reference) - self._exact])

    def discard(self) -> None:
        """Begin a round: drop what the means of the last one have staged."""
        self._feedback.discard()

    def staged(self) -> dict[str, Tensor]:
        """Return copies of what `commit` would make current: for a checkpoint in the middle of a round."""
        return self._feedback.staged()

    def stage(self, staged: Mapping[str, Tensor]) -> None:
        """Go on in the middle of a round, from what `staged` returned."""
        self._feedback.stage(staged)

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
        flat = x.reshape(-1)
        rows = self._comm.all_to_all(self._feedback.messages(flat[:n], own_weight))
        weights = rows[:, :WEIGHT].clone(memory_format=torch.contiguous_format).view(torch.float32).view(-1)
        total = float(rank_ordered_sum(list(weights)))
        if total == 0.0:
            raise CommError("mean: every rank had weight 0, so there is nothing to average")
        chunk = chunk_length(self._codec, n, self.size)
        code = self._feedback.averaged(rows[:, WEIGHT:], weights.tolist(), total, chunk)
        result = self._pool.take((n + exact,), x)
        self._vectors.decode(self._comm.gather(code), result[:n])
        if exact:
            result[n:] = self._comm.mean(flat[n:], weight)[0]
        self._feedback.mark(n if own_weight else 0)
        return result.view(x.shape), total

    def sent(self, x: Tensor) -> Tensor:
        n, exact = self._parts_of(x, x.numel())
        if not n or n != self._feedback.staged_length or not self._codes(x, n):
            return self._comm.sent(x)
        rows = self._feedback.message_rows(n)[:, WEIGHT:]
        result = self._pool.take((n + exact,), x)
        self._vectors.decode(rows, result[:n])
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
            code = self._scratch.bytes("code", self._codec.size(n))
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
        like = self.state.reference.new_empty(1).expand(self._whole)
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
        reference = self.state.reference
        if x.dtype != torch.float32 or x.device != reference.device or self.size == 1:
            return False
        return n > 0 and (not self._referenced or n == len(reference))

    def _encoded(self, vectors: Tensor, n: int) -> Tensor:
        """Return the first n elements of each row as bytes, in a scratch buffer."""
        return self._vectors.encode_rows(vectors[:, :n])

    def _decoded(self, rows: Tensor, tails: Tensor | None, like: Tensor, n: int) -> Tensor:
        """Return the vectors whose first n elements rows of bytes encode, with the exact elements behind them."""
        exact = tails.shape[1] if tails is not None else 0
        result = self._pool.take((len(rows), n + exact), like)
        for row, out in zip(rows, result, strict=True):
            self._vectors.decode(row.view(1, -1), out[:n])
        if tails is not None:
            result[:, n:] = tails
        return result
