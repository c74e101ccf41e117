"""The server's optimizer: what it does with what arrives."""

from __future__ import annotations

import dataclasses
from typing import final

import torch
from torch import Tensor

from swarmstep.arguments import Checked
from swarmstep.errors import UsageError


@final
@dataclasses.dataclass(frozen=True)
class Outer(Checked):
    """Plain SGD, or delayed Nesterov: a momentum that moves only at every N-th arrival.

    ::

        at every N-th arrival    m = b m + (1 - a) (the sum of the last N g) / N
                                 x = x - s (b m + g / N)
        at the others            x = x - s g / N

    N = 1, a = 0 is torch.optim.SGD(lr=s, momentum=b, nesterov=True), and b = 0, N = 1 plain SGD: the default.

    Args:
        lr: s, 0 to 10.
        momentum: b, 0 to 0.9999.
        every: N, at least 1.
        dampening: a, 0 to below 1, also of the first g. a = b is HeLoCo's outer step, arXiv 2606.00271.

    Raises:
        UsageError: an argument is out of its range.

    Source: the rule as the public code of HALoS has it (Kim et al., arXiv 2506.04531), where N is 2 to 16. With a
    momentum that moved at each of W arrivals, its share per round of all workers would be b**W.
    """

    lr: float
    momentum: float = 0.0
    every: int = 1
    dampening: float = 0.0

    def __post_init__(self) -> None:
        if not (
            0 <= self.lr <= 10 and 0 <= self.momentum <= 0.9999 and self.every >= 1 and 0 <= self.dampening < 1
        ):
            raise UsageError(
                f"expected lr 0 to 10, momentum 0 to 0.9999, every of at least 1, dampening 0 to below 1; "
                f"found {self}"
            )

    def step(self, x: Tensor, g: Tensor, memory: dict[str, Tensor], arrival: int) -> Tensor:
        """Return the new x [P], a new tensor.

        Args:
            x: before, [P].
            g: what has arrived, [P], already scaled.
            memory: the momentum and the sum, [P] each; empty at first, changed here; stays empty without momentum.
            arrival: its number, from 1.
        """
        direction = g / self.every if self.every > 1 else g
        if self.momentum:
            total = memory["total"] + g if "total" in memory else g.clone()
            if arrival % self.every == 0:
                old = memory.get("momentum", torch.zeros_like(x))
                memory["momentum"] = self.momentum * old + (1 - self.dampening) * total / self.every
                direction = direction + self.momentum * memory["momentum"]
                total.zero_()
            memory["total"] = total
        return x - self.lr * direction
