"""A group of one worker: no other process, no network."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

from torch import Tensor

from swarmstep.comm.background import Done, T
from swarmstep.comm.base import checked_rows, checked_source, checked_src
from swarmstep.comm.group import InProcessGroup
from swarmstep.errors import CommError, UsageError


class SoloComm(InProcessGroup):
    """The group of a worker that trains alone, by a method that helps one, too: DiLoCo with one worker is SNOO.

    ``Synchronizer(model, DiLoCo(lr=None, momentum=None, when=Every(30)), SoloComm())`` needs no launcher and no
    process group. A round sends nothing; a verb copies what it is given, and no more. The numbers are bitwise
    those of `simulate` with one worker.
    """

    rank, size = 0, 1

    def clock(self) -> float:
        return time.perf_counter()

    def elapse(self, seconds: float) -> None:
        time.sleep(seconds)

    def mean(self, x: Tensor, weight: float = 1.0) -> tuple[Tensor, float]:
        if not (0.0 <= weight < math.inf and x.is_floating_point()):
            raise UsageError(f"mean: expected floating point, 0 <= weight < inf; found {x.dtype} and {weight}")
        if not weight:
            raise CommError("mean: every rank had weight 0, so there is nothing to average")
        return x.clone(), weight

    def gather(self, x: Tensor) -> Tensor:
        return x.clone().unsqueeze(0)

    def broadcast(self, x: Tensor, src: int) -> Tensor:
        checked_src(src, 1)
        return x.clone()

    def permute(self, x: Tensor, source: Sequence[int]) -> Tensor:
        checked_source(source, 1)
        return x.clone()

    def all_to_all(self, x: Tensor) -> Tensor:
        return checked_rows(x, 1).clone()

    def split(self, color: int, name: str = "") -> SoloComm:
        return self

    def sent(self, x: Tensor) -> Tensor:
        return x

    def start(self, task: Callable[[], T]) -> Done[T]:
        return Done(task)
