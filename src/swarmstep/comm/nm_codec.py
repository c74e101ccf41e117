"""The codec that keeps N of M elements: values and patterns of the fewest bits, a fixed size."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from typing import ClassVar, final

import torch
from torch import Tensor

from swarmstep.comm.elementwise import Elementwise
from swarmstep.errors import UsageError

VALUE = 4  # bytes of a float32
TOGETHER = 8  # groups whose patterns are packed together, so that they fill whole bytes


@final
@dataclass(frozen=True)
class NMCodec(Elementwise):
    """In each group of m elements the n largest magnitudes, as float32; the others become zero.

    Of equal magnitudes the first are kept. Groups do not cross the tensors of a vector. Where they lie in a group
    is one of C = m! / (n! (m - n)!) patterns, of b = ceil(log2 C) bits: 3 for 2:4. A block of 8 groups is 8 n
    float32 values, in the order of their positions, then b bytes: bit i of byte j is bit j of the pattern of
    group i. Patterns are numbered as `itertools.combinations(range(m), n)` lists them.

    Args:
        n: how many of m elements are kept, 1 to m.
        m: elements in a group, up to 16.

    Cost: 8 m elements take 32 n + b bytes; for 2:4, 67 in place of 128. A last block of k groups takes 4 n k + b.
    """

    needs_reference: ClassVar[bool] = True
    n: int = 2
    m: int = 4

    def __post_init__(self) -> None:
        if not 1 <= self.n <= self.m <= 16:
            raise UsageError(f"NMCodec: expected 1 <= N <= M <= 16, found {self.n}:{self.m}")

    @property
    def align(self) -> int:
        return self.m

    @property
    def grain(self) -> int:
        return TOGETHER * self.m

    @property
    def bits(self) -> int:
        """How many bits a pattern takes."""
        return math.ceil(math.log2(math.comb(self.m, self.n)))

    def size(self, n: int) -> int:
        groups = -(-n // self.m)
        return VALUE * self.n * groups + self.bits * -(-groups // TOGETHER)

    def encode(self, x: Tensor, out: Tensor) -> None:
        for part, data in self._parts(x, out):
            groups = part.new_zeros(len(part), (data.shape[1] - self.bits) // (VALUE * self.n) * self.m)
            groups[:, : part.shape[1]] = part
            mask = keep_largest(groups.view(-1, self.m), self.n)
            values = groups.view(-1, self.m)[mask].view(len(part), -1)  # in rows, by position
            data[:, : -self.bits or None] = values.view(torch.uint8)
            weights = 1 << torch.arange(self.m, device=x.device)
            codes = _codes(self.n, self.m).to(x.device)[(mask * weights).sum(1)].view(len(part), -1)
            places = 1 << torch.arange(codes.shape[1], device=x.device)
            for bit in range(self.bits):
                data[:, data.shape[1] - self.bits + bit] = ((codes >> bit & 1) * places).sum(1)

    def decode(self, data: Tensor, out: Tensor) -> None:
        patterns = _patterns(self.n, self.m).to(out.device)
        for part, rows in self._parts(out, data):
            split = rows.shape[1] - self.bits
            values = rows[:, :split].clone(memory_format=torch.contiguous_format).view(torch.float32)
            places = torch.arange(values.shape[1] // self.n, device=out.device)
            planes = rows[:, split:, None].long() >> places & 1  # [k, bits, groups]
            codes = (planes << torch.arange(self.bits, device=out.device)[:, None]).sum(1)
            groups = values.new_zeros(codes.numel(), self.m)
            groups.scatter_(1, patterns[codes.view(-1)], values.reshape(-1, self.n))
            part.copy_(groups.view(len(part), -1)[:, : part.shape[1]])

    def _parts(self, x: Tensor, data: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the whole blocks of a vector and their bytes, a block in each row, and then what is left."""
        whole = len(x) - len(x) % self.grain
        for a, b in ((0, whole), (whole, len(x))):
            if a < b:
                k = max(1, (b - a) // self.grain)
                yield x[a:b].view(k, -1), data[self.size(a) : self.size(b)].view(k, -1)


def keep_largest(groups: Tensor, n: int) -> Tensor:
    """Return a mask [G, M] (bool) of the n largest magnitudes in each row of `groups`; of equal ones the first.

    NaN counts as infinite.
    """
    columns = groups.detach().abs().nan_to_num(math.inf, math.inf).t().contiguous().unbind()
    ahead = [torch.zeros_like(column, dtype=torch.uint8) for column in columns]  # how many are kept before it
    for first, second in combinations(range(len(columns)), 2):
        larger = columns[second] > columns[first]
        ahead[first] += larger
        ahead[second] += ~larger
    return (torch.stack(ahead) < n).t()


@cache
def _patterns(n: int, m: int) -> Tensor:
    """Return the positions [C, n] of each pattern."""
    return torch.tensor([*combinations(range(m), n)])


@cache
def _codes(n: int, m: int) -> Tensor:
    """Return the number of each pattern, by the sum of 2**position; -1 where that is no pattern's."""
    found = torch.full((1 << m,), -1)
    found[(1 << _patterns(n, m)).sum(1)] = torch.arange(math.comb(m, n))
    return found
