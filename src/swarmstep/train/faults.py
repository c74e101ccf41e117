"""Faults to try methods against: what the last K ranks do wrong."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from swarmstep import specs
from swarmstep.errors import UsageError
from swarmstep.seeding import generator


@dataclass(frozen=True)
class Fault:
    """What the last `count` of `workers` ranks do wrong.

    - ``noise``: before each round a rank adds Gaussian noise of deviation `number` to its parameters.
    - ``scale``: before each round a rank multiplies its parameters by `number`.
    - ``sign``: before each round a rank turns its step around: x becomes last - (x - last).
    - ``nan``: after its local step `number` a rank's parameters are NaN.

    Where gradients are averaged at every step, what a rank brings to a round is its gradient: noise is added
    to it, or it is scaled, or its sign turned. Where there are no rounds, only nan strikes.
    """

    kind: str
    count: int
    number: float
    workers: int
    seed: int

    def strikes(self, rank: int) -> bool:
        """Return whether `rank` is one of those that do wrong."""
        return rank >= self.workers - self.count

    def tamper(self, rank: int) -> Callable[[Tensor, Tensor, int], None] | None:
        """Return what this rank does to its parameters before a round (see `Options.tamper`)."""
        if self.kind == "nan" or not self.strikes(rank):
            return None

        def noise(x: Tensor, last: Tensor, step: int) -> None:
            source = generator(self.seed, step, rank, "fault")
            x.add_(torch.randn(x.shape, generator=source, dtype=x.dtype).to(x.device), alpha=self.number)

        def sign(x: Tensor, last: Tensor, step: int) -> None:
            x.copy_(2.0 * last - x)

        def scale(x: Tensor, last: Tensor, step: int) -> None:
            x.mul_(self.number)

        return {"noise": noise, "scale": scale, "sign": sign}[self.kind]

    def after_step(self, model: nn.Module, rank: int, step: int) -> None:
        """Do what goes wrong after a local step."""
        if self.kind == "nan" and self.strikes(rank) and step == self.number:
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.fill_(math.nan)


def parse(spec: str | None, workers: int, seed: int) -> Fault | None:
    """Return the fault that `spec` names.

    Raises:
        UsageError: an unknown form, more ranks than workers, or a number out of range.
    """
    if spec is None:
        return None
    kind, *numbers = spec.split(":")
    kinds: dict[str, tuple[type, ...]] = {
        "noise": (int, float),
        "scale": (int, float),
        "sign": (int,),
        "nan": (int, int),
    }
    try:
        count, *rest = [cast(text) for cast, text in zip(kinds[kind], numbers, strict=True)]
    except (KeyError, ValueError):
        raise UsageError(f"unknown fault {spec!r}; expected {specs.FAULTS}") from None
    number = float(rest[0]) if rest else 0.0
    if not 1 <= count <= workers:
        raise UsageError(f"fault {spec!r}: K must be 1 to {workers}, the number of workers, found {count}")
    if rest and not (0 < number < math.inf):
        raise UsageError(f"fault {spec!r}: expected a number above 0 after K, found {rest[0]}")
    return Fault(kind, count, number, workers, seed)
