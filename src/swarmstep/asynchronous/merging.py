"""What a server makes of a result that comes late: how much it counts, and in which direction."""

from __future__ import annotations

import dataclasses
from typing import Any, final

import torch
from torch import Tensor

from swarmstep.arguments import Checked
from swarmstep.asynchronous.jobs import Ledger
from swarmstep.asynchronous.outer import Outer
from swarmstep.asynchronous.work import Work
from swarmstep.errors import UsageError

RULES = ("constant", "delay-adaptive", "staleness", "rescaled")


def scale(rule: str, ledger: Ledger, worker: int, delay: int) -> float:
    """Return how much a result counts.

    "constant", 1; "delay-adaptive", W / max(W, tau); "staleness", 1 / (1 + tau); "rescaled", n / (W n_i), where
    n_i of the n results that count are of worker i: a worker that delivers k times as often counts 1/k as much
    each time, so that none has more say than another. It counts anew at each change of membership, with the number
    of workers that are there as W.

    Args:
        rule: one of RULES.
        ledger: in which this result is counted.
        worker: i, who has delivered it.
        delay: tau, steps of the server since the worker got its point.
    """
    workers = len(ledger.entered)
    if rule == "delay-adaptive":
        return workers / max(workers, delay)
    if rule == "staleness":
        return 1 / (1 + delay)
    if rule == "rescaled":
        counts = [entered - before for entered, before in zip(ledger.entered, ledger.base, strict=True)]
        # Of a result that waits while the membership changes nothing is counted any more.
        return sum(counts) / (sum(ledger.here) * counts[worker]) if counts[worker] and any(ledger.here) else 1.0
    return 1.0


@final
@dataclasses.dataclass(frozen=True)
class Direction(Checked):
    """What becomes of a late D that does not go the way of the outer momentum m, block by block.

    ::

        c = cos(D, m)
        conf = |D| / (|D| + kappa |m|)
        c >= keep        D
        0 <= c < keep    |D| t / |t|,  t = (1 - l) D / |D| + l m / |m|,  l = min(turn (1 - c) conf, 1)
        c < 0            D - b c |D| m / |m|,  b = min(shrink (-c) conf, most)

    So D keeps its length and is turned toward m, or loses a part of what goes against m. A block of which D or
    m is zero stays as it is.

    Args:
        keep: the cosine from which nothing is changed, 0 to 1.
        turn: at least 0; 0: nothing is turned.
        shrink: at least 0; 0: nothing is shrunk.
        most: the largest b, 0 to 1; with 1 all that goes against m can go.
        kappa: at least 0; how much of the confidence a large momentum takes.
        sizes: the elements of each block, `Flat(model).layout.sizes` for the tensors; empty: x is one block.

    Raises:
        UsageError: an argument is out of its range.

    Source: Al Asif et al., HeLoCo, arXiv 2606.00271, with the formulas as a collection of optimizers has them
    (zij, `canon/math/heloco.md`), where keep is c_ok, turn k_d, shrink k_s and most beta_max. The values were
    not found there, hence no defaults. Ours: that results with tau = 0 stay as they are.
    """

    keep: float
    turn: float
    shrink: float
    most: float
    kappa: float
    sizes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        numbers = 0 <= self.keep <= 1 and 0 <= self.most <= 1 and min(self.turn, self.shrink, self.kappa) >= 0
        if not numbers or not all(size > 0 for size in self.sizes):
            raise UsageError(
                f"expected keep and most 0 to 1, turn, shrink and kappa of at least 0, sizes above 0; found {self}"
            )

    def turned(self, d: Tensor, momentum: Tensor | None) -> Tensor:
        """Return what counts instead of D.

        Args:
            d: D [P].
            momentum: m [P], in the direction that is subtracted, too; None: there is none yet.

        Raises:
            UsageError: the blocks do not add up to P.
        """
        if momentum is None:
            return d
        sizes = self.sizes or (d.numel(),)
        if sum(sizes) != d.numel():
            raise UsageError(f"direction: expected sizes that add up to {d.numel()}, found {sum(sizes)}")
        return torch.cat([*map(self._block, d.split(sizes), momentum.split(sizes))])

    def _block(self, d: Tensor, momentum: Tensor) -> Tensor:
        length, other = float(d.norm()), float(momentum.norm())
        if not length or not other:
            return d
        toward = momentum / other
        cosine = float(d.dot(toward)) / length
        confidence = length / (length + self.kappa * other)
        if cosine >= self.keep:
            return d
        if cosine < 0:
            return d - min(-self.shrink * cosine * confidence, self.most) * cosine * length * toward
        share = min(self.turn * (1 - cosine) * confidence, 1.0)
        t = (1 - share) * d / length + share * toward
        return length * t / t.norm()


def check_direction(direction: Direction | None, outer: Outer) -> None:
    """Raise UsageError if there is no momentum to compare directions with."""
    if direction and not outer.momentum:
        raise UsageError(f"direction: expected an outer optimizer with momentum, found {outer}")


def flat_settings(method: Any) -> dict[str, Any]:
    """Return a dataclass's fields as `Method.settings`: those of what it holds by name, of the work the steps."""
    found: dict[str, Any] = {}
    for name, value in vars(method).items():
        if isinstance(value, Work):
            found["steps"] = value.steps
        elif isinstance(value, Outer | Direction):
            found.update({f"{name}.{part}": number for part, number in vars(value).items()})
        else:
            found[name] = value
    return found
