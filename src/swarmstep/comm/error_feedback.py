"""The state of a coded mean: what coding takes from a vector is added to the next one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from swarmstep.comm.codecs import Codec
from swarmstep.comm.vector_codec import Scratch, VectorCodec, chunk_length
from swarmstep.errors import UsageError
from swarmstep.ownership import Own, Place, Shared

WEIGHT = 4  # bytes of the float32 weight in front of each chunk


class CodecState(NamedTuple):
    """What coding remembers between two rounds; all empty without a reference."""

    reference: Shared  # [P]: differences from it are coded
    residual: Own  # [P]: what coding has taken from this rank's vectors and not given back
    shortfall: Place  # [chunk]: the same for the chunk of the mean that this rank averages


class ErrorFeedback:
    """The two coding steps of a mean, with their errors fed back if there is a reference.

    The steps leave the new errors in scratch buffers; only `commit` makes them current.

    Args:
        codec: how elements become bytes.
        reference: the first reference vector [P], equal on all ranks; empty if there is none.
        size: of the group.
        scratch: for the staged errors and intermediate results.
        referenced: whether there is a reference.
    """

    def __init__(self, codec: Codec, reference: Tensor, size: int, scratch: Scratch, *, referenced: bool) -> None:
        self.vectors = VectorCodec(codec, reference if referenced else None, scratch)
        self._codec, self._size, self._scratch = codec, size, scratch
        self._referenced = referenced
        chunk = chunk_length(codec, len(reference), size)
        self.state = CodecState(reference, torch.zeros_like(reference), reference.new_zeros(chunk))
        self._averaged = False  # whether a new shortfall is staged
        self.staged_length = 0  # of the vector whose messages and new residual are staged; 0: none

    def commit(self, reference: Tensor) -> None:
        """Make the staged errors current, and `reference` the new reference."""
        if self._referenced:
            if reference.numel() != len(self.state.reference):
                raise UsageError(
                    f"commit: expected {len(self.state.reference)} elements, found {list(reference.shape)}"
                )
            self.state.reference.copy_(reference.reshape(-1))
            if self.staged_length:
                self.state.residual.copy_(self._scratch.floats("residual", self.staged_length))
            if self._averaged:
                self.state.shortfall.copy_(self._scratch.floats("sum", len(self.state.shortfall)))
        self.discard()

    def discard(self) -> None:
        """Drop what is staged."""
        self._averaged, self.staged_length = False, 0

    def mark(self, length: int) -> None:
        """Note that a mean has staged its errors; `length` of this rank's vector, 0 if it had no weight."""
        self._averaged, self.staged_length = True, length

    def staged(self) -> dict[str, Tensor]:
        """Return copies of what `commit` would make current: for a checkpoint in the middle of a round."""
        copies: dict[str, Tensor] = {}
        if not self._referenced:
            return copies
        if self.staged_length:
            copies["residual"] = self._scratch.floats("residual", self.staged_length).clone()
        if self._averaged:
            copies["shortfall"] = self._scratch.floats("sum", len(self.state.shortfall)).clone()
        return copies

    def stage(self, staged: Mapping[str, Tensor]) -> None:
        """Go on in the middle of a round, from what `staged` returned."""
        self._averaged, self.staged_length = "shortfall" in staged, len(staged.get("residual", ()))
        for name, buffer in (("residual", "residual"), ("shortfall", "sum")):
            if name in staged:
                self._scratch.floats(buffer, len(staged[name])).copy_(staged[name])

    def message_rows(self, n: int) -> Tensor:
        """Return the buffer with this rank's messages in a mean of n elements, one row for each rank."""
        width = WEIGHT + self._codec.size(chunk_length(self._codec, n, self._size))
        return self._scratch.bytes("rows", self._size * width).view(self._size, width)

    def messages(self, x: Tensor, weight: float) -> Tensor:
        """Return what this rank sends to each: its weight and the coded chunk of x. Stages the new residual."""
        rows = self.message_rows(len(x))
        if not weight:
            return rows.zero_()
        rows[:, :WEIGHT] = torch.tensor([weight], dtype=torch.float32, device=x.device).view(torch.uint8)
        chunk = chunk_length(self._codec, len(x), self._size)
        residual = self.state.residual if self._referenced else None
        for rank, row in enumerate(rows):
            self.vectors.encode(x, rank * chunk, chunk, row[WEIGHT:], residual)
        return rows

    def averaged(self, rows: Tensor, weights: list[float], total: float, chunk: int) -> Tensor:
        """Return the mean of this rank's chunk, coded. Stages the new shortfall.

        Args:
            rows: the coded chunks of all ranks.
            weights: of all ranks.
            total: the sum of the weights.
            chunk: elements in each chunk.
        """
        code = self._scratch.bytes("code", self._codec.size(chunk))
        staged = self._scratch.floats("sum", chunk)
        for a, b, part in self.vectors.pieces(chunk):
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
