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
    """When the next round is due."""

    step: Shared  # int64 []: the step of the next round; 0 before step 1


@final
@dataclass(frozen=True)
class QuadraticRule(When[QuadraticRuleState]):
    """Rounds further and further apart as the learning rate falls: the Quadratic Synchronization Rule.

    ::

        n = max(base, floor((alpha / lr) ** 2))

    n is decided at step 1 and at each round, from the learning rate of that step: `Synchronizer.step(loss, lr)`.

    Args:
        base: the least number of steps between rounds, at least 1.
        alpha: in units of the learning rate, above 0.

    Raises:
        UsageError: an argument is out of its range; at a step, no learning rate of at least 0 was told.

    Source: Gu, Lyu, Arora, Zhang, Huang, A Quadratic Synchronization Rule for Distributed Deep Learning, arXiv
    2310.14423, where a round's n follows from the learning rate at its start.
    """

    base: int
    alpha: float

    def __post_init__(self) -> None:
        if self.base < 1:
            raise UsageError(f"QuadraticRule: expected base >= 1, found {self.base}")
        if not 0 < self.alpha < math.inf:
            raise UsageError(f"QuadraticRule: expected a finite alpha > 0, found {self.alpha}")

    def init(self, layout: Layout, size: int) -> QuadraticRuleState:
        return QuadraticRuleState(torch.tensor(0))

    def due(self, state: QuadraticRuleState, signal: Signal) -> bool:
        if not int(state.step):
            state.step.fill_(signal.step - 1 + self._interval(signal))
        if signal.step < state.step:
            return False
        state.step.fill_(signal.step + self._interval(signal))
        return True

    def _interval(self, signal: Signal) -> int:
        if signal.lr is None or not signal.lr >= 0:
            raise UsageError(
                f"step {signal.step}: QuadraticRule needs the inner optimizer's learning rate, found {signal.lr}; "
                "call Synchronizer.step(loss, lr)"
            )
        ratio = self.alpha / signal.lr if signal.lr else math.inf
        return max(self.base, int(min(ratio * ratio, 1e15)))
