"""When a round starts: the same answer on every rank."""

from __future__ import annotations

from swarmstep.when.base import NoState, When
from swarmstep.when.every_time import EveryTime
from swarmstep.when.gradient_change import GradientChange
from swarmstep.when.quadratic_rule import QuadraticRule
from swarmstep.when.steps import Balanced, Every, Never
from swarmstep.when.warmup_trigger import WarmupTrigger

__all__ = [
    "Balanced",
    "Every",
    "EveryTime",
    "GradientChange",
    "Never",
    "NoState",
    "QuadraticRule",
    "WarmupTrigger",
    "When",
]
