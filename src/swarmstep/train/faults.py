"""Faults to try methods against: what the last K ranks do wrong, injected at the runtime's fault points."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from swarmstep import fault_points, spec_help
from swarmstep.errors import UsageError
from swarmstep.seeding import generator


@dataclass(frozen=True)
class Fault:
    """What the last `count` of `workers` ranks do wrong.

    - ``noise``: before each round a rank adds Gaussian noise of standard deviation `number` to its parameters.
    - ``scale``: before each round a rank multiplies its parameters by `number`.
    - ``sign``: before each round a rank reverses its step: x becomes last - (x - last).
    - ``nan``: after its local step `number` a rank's parameters are NaN.

    Where gradients are averaged, what a rank brings to a round is its gradient: noise is added to it, it is
    scaled, or its sign is reversed. Without rounds only nan has an effect.
    """

    kind: str
    count: int
    number: float
    workers: int
    seed: int

    def strikes(self, rank: int) -> bool:
        """Return whether `rank` is one of those that do wrong."""
        return rank >= self.workers - self.count

    def before_round(self, x: Tensor, last: Tensor, rank: int, step: int) -> None:
        """Do what goes wrong before a round.

        Args:
            x: what this rank brings to the round, [P]; changed in place.
            last: its parameters after the round before, [P]; zeros where x is a gradient.
            rank: this rank.
            step: of the round.
        """
        if not self.strikes(rank):
            return
        if self.kind == "noise":
            source = generator(self.seed, step, rank, "fault")
            x.add_(torch.randn(x.shape, generator=source, dtype=x.dtype).to(x.device), alpha=self.number)
        elif self.kind == "sign":
            x.copy_(2.0 * last - x)
        elif self.kind == "scale":
            x.mul_(self.number)

    def after_step(self, model: nn.Module, rank: int, step: int) -> None:
        """Do what goes wrong after a local step."""
        if self.kind == "nan" and self.strikes(rank) and step == self.number:
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.fill_(math.nan)


class FaultInjector:
    """Injects a fault into one worker: the hook for `fault_points.interfering`.

    Args:
        fault: what goes wrong.
        rank: of this worker, or in an elastic run its slot.
    """

    def __init__(self, fault: Fault, rank: int) -> None:
        self._fault, self._rank = fault, rank
        self._last: dict[int, Tensor] = {}  # the vector of each fragment after its last round

    def __call__(self, point: str, **what: Any) -> None:
        if point == fault_points.ROUND_OPENED:
            x, weights = what["x"], what["target"] == "weights"
            last = self._last[what["fragment"]][: len(x)] if weights else torch.zeros_like(x)
            self._fault.before_round(x, last, self._rank, what["step"])
        elif point == fault_points.STARTED:
            self._last.setdefault(what["fragment"], what["x"].clone())
        elif point == fault_points.LANDED and what["target"] == "weights":
            self._last[what["report"].fragment] = what["x"].clone()

    def after_step(self, model: nn.Module, step: int) -> None:
        """Do what goes wrong after a local step."""
        self._fault.after_step(model, self._rank, step)

    def state_dict(self) -> dict[str, Any]:
        """Return the weights after the last round of each fragment."""
        return {"last": dict(self._last)}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self._last = {fragment: x.clone() for fragment, x in saved["last"].items()}


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
        raise UsageError(f"unknown fault {spec!r}; expected {spec_help.FAULTS}") from None
    number = float(rest[0]) if rest else 0.0
    if not 1 <= count <= workers:
        raise UsageError(f"fault {spec!r}: K must be 1 to {workers}, the number of workers, found {count}")
    if rest and not (0 < number < math.inf):
        raise UsageError(f"fault {spec!r}: expected a number above 0 after K, found {rest[0]}")
    return Fault(kind, count, number, workers, seed)


@contextlib.contextmanager
def injected(spec: str | None, workers: int, seed: int, rank: int) -> Generator[FaultInjector | None]:
    """Inject the fault that `spec` names into the worker `rank`, for as long as the block runs.

    Raises:
        UsageError: as in `parse`.
    """
    fault = parse(spec, workers, seed)
    if fault is None:
        yield None
        return
    injector = FaultInjector(fault, rank)
    with fault_points.interfering(injector):
        yield injector
