"""The Quadratic Synchronization Rule: rounds further and further apart as the learning rate falls."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, final

import torch

from swarmstep.errors import UsageError
from swarmstep.ownership import Shared
from swarmstep.signal import Layout, Signal
from swarmstep.when.base import When


class QuadraticRuleState(NamedTuple):
    """The last round, and what has been told since."""

    step: Shared  # int64 []: of the last round; 0 before the first
    rate: Shared  # float64 []: the highest learning rate since then; 0 before step 1


@final
@dataclass(frozen=True)
class QuadraticRule(When[QuadraticRuleState]):
    """Rounds further and further apart as the learning rate falls: the Quadratic Synchronization Rule.

    ::

        n = max(base, floor((alpha / lr) ** 2))       base where lr = 0

    lr is the highest learning rate since the last round, or since step 1: `Synchronizer.step(loss, lr)`. While the
    rate falls that is the rate of the last round; in a warm-up the rounds come as soon as it has risen enough.

    Args:
        base: the least number of steps between rounds, at least 1.
        alpha: in units of the learning rate, above 0.

    Raises:
        UsageError: an argument is out of its range; at a step, no learning rate of at least 0 was told.

    Source: Gu, Lyu, Arora, Zhang, Huang, A Quadratic Synchronization Rule for Distributed Deep Learning, arXiv
    2310.14423, where a round's n follows from the learning rate at its start; warm-up and rate 0 are ours.
    """

    base: int
    alpha: float

    def __post_init__(self) -> None:
        if self.base < 1:
            raise UsageError(f"QuadraticRule: expected base >= 1, found {self.base}")
        if not 0 < self.alpha < math.inf:
            raise UsageError(f"QuadraticRule: expected a finite alpha > 0, found {self.alpha}")

    def init(self, layout: Layout, size: int) -> QuadraticRuleState:
        return QuadraticRuleState(torch.tensor(0), torch.tensor(0.0, dtype=torch.float64))

    def due(self, state: QuadraticRuleState, signal: Signal) -> bool:
        if signal.lr is None or not signal.lr >= 0:
            raise UsageError(
                f"step {signal.step}: QuadraticRule needs the inner optimizer's learning rate, found {signal.lr}; "
                "call Synchronizer.step(loss, lr)"
            )
        rate = max(signal.lr, float(state.rate))
        due = signal.step - int(state.step) >= self._interval(rate)
        if due:
            state.step.fill_(signal.step)
        state.rate.fill_(signal.lr if due else rate)
        return due

    def _interval(self, rate: float) -> int:
        ratio = self.alpha / rate if rate else 0.0
        return max(self.base, int(min(ratio * ratio, 1e15)))
