"""A group around another, for tests that count calls or let them fail."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from swarmstep import Group
from swarmstep.comm.background import BackgroundTask, Pending, T
from swarmstep.comm.group import Decision


class Wrapped(Group):
    """Delegates everything to `inner`, and calls `before` ahead of each verb."""

    def __init__(self, inner: Group) -> None:
        self.inner, self.rank, self.size = inner, inner.rank, inner.size

    def before(self, verb: str, elements: int) -> None:
        """Note a call, or let it fail; `elements` of the tensor, 0 for `split`."""

    @property
    def elastic(self) -> bool:
        return self.inner.elastic

    @property
    def epoch(self) -> int:
        return self.inner.epoch

    @property
    def names(self) -> tuple[str, ...]:
        return self.inner.names

    @property
    def sources(self) -> tuple[int | None, ...]:
        return self.inner.sources

    def clock(self) -> float:
        return self.inner.clock()

    def elapse(self, seconds: float) -> None:
        self.inner.elapse(seconds)

    def mean(self, x: Tensor, weight: float = 1.0) -> tuple[Tensor, float]:
        self.before("mean", x.numel())
        return self.inner.mean(x, weight)

    def gather(self, x: Tensor) -> Tensor:
        self.before("gather", x.numel())
        return self.inner.gather(x)

    def broadcast(self, x: Tensor, src: int) -> Tensor:
        self.before("broadcast", x.numel())
        return self.inner.broadcast(x, src)

    def permute(self, x: Tensor, source: Sequence[int]) -> Tensor:
        self.before("permute", x.numel())
        return self.inner.permute(x, source)

    def all_to_all(self, x: Tensor) -> Tensor:
        self.before("all_to_all", x.numel())
        return self.inner.all_to_all(x)

    def split(self, color: int, name: str = "") -> Group:
        self.before("split", 0)
        return self.inner.split(color, name)

    def sent(self, x: Tensor) -> Tensor:
        return self.inner.sent(x)

    def decide(self) -> Decision:
        return self.inner.decide()

    def meets(self, number: int, wanted: bool) -> bool:
        return self.inner.meets(number, wanted)

    @property
    def broken(self) -> bool:
        return self.inner.broken

    def renewal(self) -> BackgroundTask[Group]:
        return self.inner.renewal()

    def renew(self) -> Group:
        return self.inner.renew()

    def start(self, task: Callable[[], T]) -> Pending[T]:
        return self.inner.start(task)

    def settle(self) -> None:
        self.inner.settle()

    def reusing(self) -> Group:
        return self

    def recycle(self) -> None:
        """Nothing is reused: each result may be looked at for as long as a test likes."""
