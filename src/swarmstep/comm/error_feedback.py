"""The state of a coded mean: what coding takes from a vector is added to the next one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from swarmstep.comm.base import Comm, rank_ordered_sum
from swarmstep.comm.codec import Coding, take_over
from swarmstep.comm.scratch import Scratch
from swarmstep.comm.vector_codec import VectorCodec, chunk_length
from swarmstep.errors import CommError
from swarmstep.ownership import Own, Place, Shared

if TYPE_CHECKING:
    from swarmstep.comm.elementwise import Elementwise

WEIGHT = 4  # bytes of the float32 weight in front of each chunk


class CodecState(NamedTuple):
    """What coding remembers between two rounds; all empty without a reference."""

    reference: Shared  # [P]: differences from it are coded
    residual: Own  # [P]: what coding has taken from this rank's vectors and not given back
    shortfall: Place  # [chunk]: the same for the chunk of the mean that this rank averages


class ErrorFeedback(Coding):
    """A mean in chunks, each coded on its way to the rank that averages it and back, with errors fed back.

    The two steps leave the new errors in scratch buffers; only `commit` makes them current. Without a reference no
    errors are kept.

    Args:
        codec: how elements become bytes.
        reference: the first reference vector [P], equal on all ranks; empty if there is none.
        size: of the group.
        scratch: for the staged errors and intermediate results.
        referenced: whether there is a reference.
    """

    def __init__(
        self, codec: Elementwise, reference: Tensor, size: int, scratch: Scratch, *, referenced: bool
    ) -> None:
        self._vectors = VectorCodec(codec, reference if referenced else None, scratch)
        self._codec, self._size, self._scratch = codec, size, scratch
        self._referenced = referenced
        chunk = chunk_length(codec, len(reference), size)
        self._state = CodecState(reference, torch.zeros_like(reference), reference.new_zeros(chunk))
        self._averaged = False  # whether a new shortfall is staged

    @property
    def state(self) -> CodecState:
        return self._state

    def commit(self, reference: Tensor) -> None:
        if self._referenced:
            take_over(self.state.reference, reference)
            if self.staged_length:
                self.state.residual.copy_(self._scratch.floats("residual", self.staged_length))
            if self._averaged:
                self.state.shortfall.copy_(self._scratch.floats("sum", len(self.state.shortfall)))
        self.discard()

    def discard(self) -> None:
        self._averaged, self.staged_length = False, 0

    def staged(self) -> dict[str, Tensor]:
        copies: dict[str, Tensor] = {}
        if not self._referenced:
            return copies
        if self.staged_length:
            copies["residual"] = self._scratch.floats("residual", self.staged_length).clone()
        if self._averaged:
            copies["shortfall"] = self._scratch.floats("sum", len(self.state.shortfall)).clone()
        return copies

    def stage(self, staged: Mapping[str, Tensor]) -> None:
        self._averaged, self.staged_length = "shortfall" in staged, len(staged.get("residual", ()))
        for name, buffer in (("residual", "residual"), ("shortfall", "sum")):
            if name in staged:
                self._scratch.floats(buffer, len(staged[name])).copy_(staged[name])

    def mean(self, comm: Comm, x: Tensor, weight: float, out: Tensor) -> float:
        rows = comm.all_to_all(self._messages(x, weight))
        weights = rows[:, :WEIGHT].clone(memory_format=torch.contiguous_format).view(torch.float32).view(-1)
        total = float(rank_ordered_sum(list(weights)))
        if total == 0.0:
            raise CommError("mean: every rank had weight 0, so there is nothing to average")
        chunk = chunk_length(self._codec, len(x), self._size)
        code = self._averages(rows[:, WEIGHT:], weights.tolist(), total, chunk)
        self._vectors.decode(comm.gather(code), out)
        self._averaged, self.staged_length = True, len(x) if weight else 0
        return total

    def given(self, out: Tensor) -> None:
        self._vectors.decode(self._message_rows(self.staged_length)[:, WEIGHT:], out)

    def size(self, n: int) -> int:
        return self._codec.size(n)

    def encode(self, vectors: Tensor) -> Tensor:
        return self._vectors.encode_rows(vectors)

    def decode(self, row: Tensor, out: Tensor) -> None:
        self._vectors.decode(row.view(1, -1), out)

    def _message_rows(self, n: int) -> Tensor:
        """Return the buffer with this rank's messages in a mean of n elements, one row for each rank."""
        width = WEIGHT + self._codec.size(chunk_length(self._codec, n, self._size))
        return self._scratch.bytes("rows", self._size * width).view(self._size, width)

    def _messages(self, x: Tensor, weight: float) -> Tensor:
        """Return what this rank sends to each: its weight and the coded chunk of x. Stages the new residual."""
        rows = self._message_rows(len(x))
        if not weight:
            return rows.zero_()
        rows[:, :WEIGHT] = torch.tensor([weight], dtype=torch.float32, device=x.device).view(torch.uint8)
        chunk = chunk_length(self._codec, len(x), self._size)
        residual = self.state.residual if self._referenced else None
        for rank, row in enumerate(rows):
            self._vectors.encode(x, rank * chunk, chunk, row[WEIGHT:], residual)
        return rows

    def _averages(self, rows: Tensor, weights: list[float], total: float, chunk: int) -> Tensor:
        """Return the mean of this rank's chunk, coded. Stages the new shortfall.

        Args:
            rows: the coded chunks of all ranks.
            weights: of all ranks.
            total: the sum of the weights.
            chunk: elements in each chunk.
        """
        code = self._scratch.bytes("code", self._codec.size(chunk))
        staged = self._scratch.floats("sum", chunk)
        for a, b, part in self._vectors.pieces(chunk):
            mean, decoded = staged[a:b].zero_(), self._scratch.floats("decoded", b - a)
            for weight, row in zip(weights, rows, strict=True):
                if weight:
                    self._codec.decode(row[part], decoded)
                    # Not add_(alpha=...): whether that rounds once or twice depends on the processor.
                    mean.add_(decoded if weight == 1.0 else decoded.mul_(weight))
            mean.div_(total)
            if self._referenced:
                mean.add_(self.state.shortfall[a:b])
            self._codec.encode(mean, code[part])
            if self._referenced:
                self._codec.decode(code[part], decoded)
                mean.sub_(decoded)
        return code
