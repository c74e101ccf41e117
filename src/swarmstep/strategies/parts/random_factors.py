"""The random factors r1 and r2 of a particle's velocity."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from swarmstep.seeding import generator
from swarmstep.strategies.parts.blocks import blocks

Factor: TypeAlias = Tensor | float  # one for each element of a block, or one for all of them
FACTORS = ("tensor", "vector", "weight", "none")


def random_factors(per: str, x: Tensor, sizes: Sequence[int], seed: int) -> Iterator[tuple[slice, Factor, Factor]]:
    """Yield blocks that cover x [P], each with its r1 and r2 ~ U(0, 1).

    Args:
        per: what has factors of its own: each "tensor" of x, the whole "vector", or each "weight"; with "none"
            both factors are 1.
        x: gives length, dtype and device.
        sizes: number of elements of each tensor in x.
        seed: of this particle in this round.
    """
    if per == "weight":
        source = generator(seed, device=x.device)
        r = torch.rand((2, x.numel()), generator=source, dtype=x.dtype, device=x.device)
        for block in blocks(x):
            yield block, r[0, block], r[1, block]
        return
    lengths = list(sizes) if per == "tensor" else [x.numel()]
    r = (
        torch.ones(2, 1)
        if per == "none"
        else torch.rand((2, len(lengths)), generator=generator(seed), dtype=x.dtype)
    )
    start = 0
    for length, r1, r2 in zip(lengths, *r.tolist(), strict=True):
        for block in blocks(x[start : start + length]):
            yield slice(start + block.start, start + block.stop), r1, r2
        start += length
