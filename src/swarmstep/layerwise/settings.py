"""The hyper-parameters of a network that grows layer by layer."""

from __future__ import annotations

import dataclasses
import math

from swarmstep.arguments import Checked
from swarmstep.errors import UsageError
from swarmstep.strategies.base import check_choice
from swarmstep.strategies.parts.graph import MIXINGS


@dataclasses.dataclass(frozen=True)
class SSFNSettings(Checked):
    """How the network grows, and how a layer is solved.

    The authors' public code for one machine has 20 layers at most, up to 1000 random nodes, 50 at a time, deeper
    0.1, wider 0.005, alpha 2, for one data set ridge 100, and 100 iterations of ADMM with a fixed mu. The other
    defaults are ours.

    Args:
        layers: hidden layers at most, at least 1.
        width: random nodes of a layer at most, at least 1.
        grow: random nodes that are added at a time; 0: all at once.
        deeper: another layer follows while the last one has lowered the cost, in dB, by this part; 0: all.
        wider: more nodes follow while the last ones have lowered it by this part.
        alpha: the norm of a layer's O is at most alpha sqrt(2 Q), with Q outputs; at least 1, for which a layer
            can hand on what the one before it has found.
        ridge: weight of the squared norm of O_0, the linear map that comes first; above 0.
        iterations: of ADMM for a solution, at most; only with a graph.
        tolerance: ADMM stops where its relative residuals are at most this; 0: it takes all iterations.
        mu: of ADMM, fixed, without over-relaxation; 0: found.
        mixing: finite, as many mixings as the graph has eigenvalues; repeated, plain mixing until all agree.

    Raises:
        UsageError: a value is out of its range.
    """

    layers: int = 20
    width: int = 1000
    grow: int = 0
    deeper: float = 0.1
    wider: float = 0.005
    alpha: float = 2.0
    ridge: float = 100.0
    iterations: int = 5000
    tolerance: float = 1e-9
    mu: float = 0.0
    mixing: str = "finite"

    def __post_init__(self) -> None:
        least = {"layers": 1, "width": 1, "grow": 0, "deeper": 0, "wider": 0, "alpha": 1, "iterations": 1}
        for name, low in {**least, "tolerance": 0, "mu": 0, "ridge": 1e-12}.items():
            if not low <= getattr(self, name) < math.inf:
                raise UsageError(f"{name}: expected at least {low}, found {getattr(self, name)}")
        check_choice("mixing", self.mixing, MIXINGS)

    @property
    def sizes(self) -> list[int]:
        """The numbers of random nodes that a layer may have, in rising order."""
        step = self.grow or self.width
        return [*range(step, self.width, step), self.width]
