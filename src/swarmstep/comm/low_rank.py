"""The low-rank codec: of each matrix, its product with a few directions that follow from round to round."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, final

import torch
from torch import Tensor

from swarmstep.comm.base import Comm
from swarmstep.comm.codec import Codec, Coding, Shapes, take_over
from swarmstep.comm.scratch import Scratch
from swarmstep.errors import UsageError
from swarmstep.ownership import Own, Shared
from swarmstep.seeding import generator

VALUE = 4  # bytes of a float32


@final
@dataclass(frozen=True)
class LowRank(Codec):
    """Each matrix of the vector as a product of rank R, by one power iteration a round (PowerSGD).

    ::

        D_i = x_i - reference + residual_i            a tensor [out, ...] as the matrix [out, rest]
        P = orthogonal(mean_i(D_i Q));  Q' = mean_i(D_i' P);  mean = reference + P Q''
        residual_i' = D_i - P (D_i' P)'               Q' is the next round's Q

    Tensors that the factors would not shorten (vectors, small matrices) travel as they are. The means of the
    factors are exact float32 means, so all ranks hold the same. Other verbs than the mean send a pair of factors
    for each vector, from the same Q, without feedback.

    Args:
        rank: R, at least 1.
        seed: of the first Q, the same on all ranks.

    Cost: with S = R sum (out + rest) over the factored matrices + the elements of the others, a mean sends
    8 (W-1)/W (S + 2) bytes from each worker, in place of 8 (W-1)/W (P + 1); another vector takes 4 S bytes.
    4 R out rest operations a matrix.

    Source: Vogels, Karimireddy, Jaggi, NeurIPS 2019, arXiv 1905.13727; from memory. Ours: differences of weights
    in place of gradients; a column that vanishes keeps its former direction.
    """

    needs_reference: ClassVar[bool] = True
    rank: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UsageError(f"LowRank: rank: expected at least 1, found {self.rank}")

    def coding(
        self, reference: Tensor, shapes: Shapes, size: int, scratch: Scratch, *, referenced: bool
    ) -> Coding:
        return Factors(self, reference, shapes, scratch)


class FactorState(NamedTuple):
    """What the low-rank codec remembers between two rounds."""

    reference: Shared  # [P]: differences from it are coded
    residual: Own  # [P]: what coding has taken from this rank's vectors and not given back
    basis: Shared  # Q of all matrices, one behind the other


class _Matrix(NamedTuple):
    """Where a factored tensor lies in the vector."""

    start: int
    rows: int
    columns: int


class Factors(Coding):
    """The mean of factors, with the errors of each rank fed back.

    Args:
        codec: the rank, and the seed of the first directions.
        reference: the first reference vector [P], equal on all ranks.
        shapes: of the tensors in it.
        scratch: for the staged errors and intermediate results.
    """

    def __init__(self, codec: LowRank, reference: Tensor, shapes: Shapes, scratch: Scratch) -> None:
        self._rank, self._scratch = codec.rank, scratch
        self._matrices, start, self._plain = list[_Matrix](), 0, list[slice]()
        for shape in shapes:
            count = math.prod(shape)
            rows = shape[0] if len(shape) > 1 else 0
            if rows and codec.rank * (rows + count // rows) < count:
                self._matrices.append(_Matrix(start, rows, count // rows))
            else:
                self._plain.append(slice(start, start + count))
            start += count
        if start != len(reference):
            raise UsageError(f"LowRank: shapes of {start} elements for a vector of {len(reference)}")
        first = generator(codec.seed, "low rank")
        drawn = [torch.randn(m.columns, codec.rank, generator=first).view(-1) for m in self._matrices]
        basis = torch.cat([*drawn, torch.zeros(0)]).to(reference.device)
        self._state = FactorState(reference, torch.zeros_like(reference), basis)
        self._averaged = False  # whether a new basis is staged

    @property
    def state(self) -> FactorState:
        return self._state

    def commit(self, reference: Tensor) -> None:
        take_over(self._state.reference, reference)
        for name, staged in self.staged().items():
            getattr(self._state, name).copy_(staged)
        self.discard()

    def discard(self) -> None:
        self._averaged, self.staged_length = False, 0

    def staged(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        if self.staged_length:
            found["residual"] = self._scratch.floats("residual", self.staged_length).clone()
        if self._averaged:
            found["basis"] = self._scratch.floats("basis", len(self._state.basis)).clone()
        return found

    def stage(self, staged: Mapping[str, Tensor]) -> None:
        self._averaged, self.staged_length = "basis" in staged, len(staged.get("residual", ()))
        for name, value in staged.items():
            self._scratch.floats(name, len(value)).copy_(value)

    def mean(self, comm: Comm, x: Tensor, weight: float, out: Tensor) -> float:
        delta = self._scratch.floats("delta", len(x)).zero_()
        if weight:
            torch.sub(x, self._state.reference, out=delta).add_(self._state.residual)
        left, total = comm.mean(self._left(delta), weight)
        bases = [_orthogonal(part) for part in self._split(left, rows=True)]
        own = self._right(delta, bases)
        right, _ = comm.mean(own, weight)
        self._product(bases, right, out)
        out.add_(self._state.reference)
        basis = self._scratch.floats("basis", len(self._state.basis)).copy_(self._state.basis)
        for old, new in zip(self._split(basis, rows=False), self._split(right, rows=False), strict=True):
            old.copy_(torch.where(new.any(0), new, old))
        if weight:
            given = self._scratch.floats("given", len(x))
            self._product(bases, own, given)
            torch.sub(delta, given, out=self._scratch.floats("residual", len(x)))
        self._averaged, self.staged_length = True, len(x) if weight else 0
        return total

    def given(self, out: Tensor) -> None:
        torch.add(self._scratch.floats("given", self.staged_length), self._state.reference, out=out)

    def size(self, n: int) -> int:
        left = self._rank * sum(m.rows for m in self._matrices)
        plain = sum(part.stop - part.start for part in self._plain)
        return VALUE * (left + len(self._state.basis) + plain)

    def encode(self, vectors: Tensor) -> Tensor:
        count = self.size(vectors.shape[1])
        rows = self._scratch.bytes("code", len(vectors) * count).view(len(vectors), count)
        for vector, row in zip(vectors, rows, strict=True):
            delta = vector - self._state.reference
            bases = [_orthogonal(part) for part in self._split(self._left(delta), rows=True)]
            factors = torch.cat([*(base.reshape(-1) for base in bases), self._right(delta, bases)])
            row.copy_(factors.view(torch.uint8))
        return rows

    def decode(self, row: Tensor, out: Tensor) -> None:
        factors = row.clone().view(torch.float32)
        split = self._rank * sum(m.rows for m in self._matrices)
        self._product([*self._split(factors[:split], rows=True)], factors[split:], out)
        out.add_(self._state.reference)

    def _split(self, factors: Tensor, *, rows: bool) -> Iterator[Tensor]:
        """Yield the factor of each matrix, [rows, R] or [columns, R], from a vector that begins with them."""
        start = 0
        for matrix in self._matrices:
            length = matrix.rows if rows else matrix.columns
            yield factors[start : start + length * self._rank].view(length, self._rank)
            start += length * self._rank

    def _left(self, delta: Tensor) -> Tensor:
        """Return D Q of all matrices, one behind the other; with a zero behind, where there is none."""
        bases = self._split(self._state.basis, rows=False)
        # Clones begin where memory does: what a product rounds to depends on that.
        products = [_matrix(delta, m) @ q.clone() for m, q in zip(self._matrices, bases, strict=True)]
        return torch.cat([*(product.view(-1) for product in products), delta.new_zeros(0 if products else 1)])

    def _right(self, delta: Tensor, bases: list[Tensor]) -> Tensor:
        """Return D' P of all matrices, and then the elements of the other tensors."""
        products = [_matrix(delta, m).t() @ p for m, p in zip(self._matrices, bases, strict=True)]
        return torch.cat([*(product.reshape(-1) for product in products), *(delta[part] for part in self._plain)])

    def _product(self, bases: list[Tensor], right: Tensor, out: Tensor) -> None:
        """Fill `out` [P] with P Q' of the matrices and the other elements. Elementwise: alike on any machine."""
        for matrix, p, q in zip(self._matrices, bases, self._split(right, rows=False), strict=True):
            place = out[matrix.start : matrix.start + matrix.rows * matrix.columns].view(matrix.rows, -1).zero_()
            for r in range(self._rank):
                place.add_(p[:, r, None] * q[:, r])
        rest = right[len(self._state.basis) :]
        for part in self._plain:
            count = part.stop - part.start
            out[part], rest = rest[:count], rest[count:]


def _matrix(x: Tensor, place: _Matrix) -> Tensor:
    """Return a copy of a tensor in x as a matrix."""
    return x[place.start : place.start + place.rows * place.columns].clone().view(place.rows, place.columns)


def _orthogonal(x: Tensor) -> Tensor:
    """Return the columns of x [rows, R] made orthonormal, one after another (Gram-Schmidt); zero where dependent.

    Elementwise, so that all ranks find the same bits, on whatever machines.
    """
    columns: list[Tensor] = []
    for column in x.unbind(1):
        size = ordered_sum(column * column).sqrt()
        for _ in range(2):  # the second pass takes what rounding has left
            for other in columns:
                column = column - other * ordered_sum(other * column)
        norm = ordered_sum(column * column).sqrt()
        columns.append(torch.where(norm > 1e-5 * size, column / norm, 0.0))
    return torch.stack(columns, 1)


def ordered_sum(x: Tensor) -> Tensor:
    """Return the sum of a vector, by halves: its order is the same on any machine."""
    while len(x) > 1:
        half = (len(x) + 1) // 2
        x = torch.cat([x[:half][: len(x) - half] + x[half:], x[len(x) - half : half]])
    return x.reshape(())
