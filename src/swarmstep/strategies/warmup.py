"""Warm-up: one strategy for the first steps, another from there on."""

from __future__ import annotations

import dataclasses
from typing import NoReturn, final

from torch import Tensor

from swarmstep.comm.base import Comm
from swarmstep.errors import UsageError
from swarmstep.signal import Layout, Roll, Signal
from swarmstep.strategies.base import Strategy
from swarmstep.strategies.local_sgd import LocalSGD
from swarmstep.when import Every, Never, NoState, WarmupTrigger, When


@final
@dataclasses.dataclass(frozen=True)
class Warmup(Strategy):
    """Synchronize by the strategy `first` up to step `steps`, then by `then`.

    ::

        x_i = first(x_i)      in rounds up to step `steps`; the last is at that step
        x_i = then(x_i)       in later rounds; its state begins at the vector common to all after the last round

    A plain mean after every step, then local SGD, is post-local SGD: ``Warmup(LocalSGD(when=Every(16)), 1000)``.
    `then` counts steps from the beginning of training; its policy for buffers holds in the warm-up, too.

    Args:
        then: the strategy after the warm-up, with its own trigger.
        steps: length of the warm-up in local steps, at least 0.
        first: the strategy during the warm-up. Its rounds must leave a vector that is common to all ranks, and
            its trigger must be Every(n), with one n for all ranks, or Never(). The default is a plain mean after
            every step.

    Raises:
        UsageError: an argument is out of its range.

    Cost: that of the strategy whose turn it is.

    Source: Lin, Stich, Patel, Jaggi, Don't Use Large Mini-Batches, Use Local SGD, arXiv 1808.07217, post-local
    SGD. There the warm-up averages gradients; here it averages weights, and the inner optimizers' states stay
    local.
    """

    then: Strategy
    steps: int
    first: Strategy = dataclasses.field(default=LocalSGD(when=Every(1)))
    when: When = dataclasses.field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise UsageError(f"Warmup: expected steps >= 0, found {self.steps}")
        if not isinstance(self.first.when, (Every, Never)) or self.first.when.per_rank:
            raise UsageError(
                "Warmup: expected first.when=Every(n), with one n for all ranks, or Never(), "
                f"found {self.first.when}"
            )
        if "gradients" in (self.first.target, self.then.target):
            raise UsageError("Warmup: expected two strategies that synchronize weights, found one for gradients")
        if self.first.common == "none":
            raise UsageError(
                f"Warmup: expected a first strategy that leaves a vector common to all ranks, found {self.first}"
            )
        object.__setattr__(self, "when", WarmupTrigger(self.first.when, self.steps, self.then.when))

    @property
    def buffers(self) -> tuple[str, ...]:
        return self.then.buffers

    @property
    def one_result(self) -> bool:
        return self.first.one_result and self.then.one_result

    @property
    def common(self) -> str:
        return self.then.common

    @property
    def needs_probe(self) -> bool:
        return self.first.needs_probe or self.then.needs_probe

    @property
    def needs_loss(self) -> bool:
        return self.first.needs_loss or self.then.needs_loss

    def at(self, step: int) -> Strategy:
        return self.first.at(step) if step <= self.steps else self.then.at(step)

    # A round asks the strategy whose turn it is, so that these have nothing to do.

    def init(self, x: Tensor, layout: Layout, comm: Comm) -> NoReturn:
        raise self._asked()

    def exchange(self, x: Tensor, state: NoState, signal: Signal, roll: Roll, comm: Comm) -> NoReturn:
        raise self._asked()

    def apply(self, x: Tensor, state: NoState, message: NoState, layout: Layout) -> NoReturn:
        raise self._asked()

    def consensus(self, x: Tensor, message: NoState) -> NoReturn:
        raise self._asked()

    def _asked(self) -> UsageError:
        return UsageError("Warmup has no rounds of its own; ask the strategy that Warmup.at(step) returns")
