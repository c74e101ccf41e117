"""Counts the bytes that a worker sends and receives, by the formula of each verb."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from swarmstep.arguments import check_type
from swarmstep.comm.background import BackgroundTask, Pending, T
from swarmstep.comm.group import Decision, Group


class Call(NamedTuple):
    """One call of a verb: its name, the bytes of this worker's argument, the size of the group."""

    verb: str
    bytes: int
    size: int


@dataclass(slots=True)
class Traffic:
    """Bytes of payload that one worker has sent and received, and by which calls, where these are recorded."""

    sent: int = 0
    received: int = 0
    calls: list[Call] = field(default_factory=list[Call])

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(self.sent + other.sent, self.received + other.received, self.calls + other.calls)


class Metered(Group):
    """Any Group, with its traffic counted in `traffic`.

    With n elements of b bytes among W workers, the sums over all workers are: `mean` 2 (W-1) (n+1) b, a ring
    all-reduce of the vector with the weight behind it; `gather` W (W-1) n b; `broadcast` (W-1) n b, as a
    chain, so all but its last rank send and all but `src` receive; `permute` n b for each rank whose source is
    another; `all_to_all` (W-1) n b, where n counts the elements of all its rows. Setting up a `split` is not
    counted; the Group it returns counts into the same `traffic`, which is the sum, without the calls.
    """

    def __init__(self, comm: Group, parent: Metered | None = None) -> None:
        check_type("Metered: comm", comm, Group)
        self._comm = comm
        self.rank = comm.rank
        self.size = comm.size
        self.traffic = parent.traffic if parent else Traffic()
        self._counting: list[Traffic] = parent._counting if parent else []

    @property
    def bare(self) -> Group:
        """The Group within, whose traffic is not counted."""
        return self._comm

    @contextlib.contextmanager
    def counting(self) -> Generator[Traffic]:
        """Yield the traffic of this block, with its calls."""
        traffic = Traffic()
        self._counting.append(traffic)
        try:
            yield traffic
        finally:
            self._counting.remove(traffic)

    def count(self, call: Call, sent: int, received: int) -> None:
        """Count a call, which may have been made elsewhere, such as by DDP."""
        for traffic in (self.traffic, *self._counting):
            traffic.sent += sent
            traffic.received += received
        for traffic in self._counting:
            traffic.calls.append(call)

    @property
    def elastic(self) -> bool:
        return self._comm.elastic

    @property
    def epoch(self) -> int:
        return self._comm.epoch

    @property
    def names(self) -> tuple[str, ...]:
        return self._comm.names

    @property
    def sources(self) -> tuple[int | None, ...]:
        return self._comm.sources

    def clock(self) -> float:
        return self._comm.clock()

    def elapse(self, seconds: float) -> None:
        self._comm.elapse(seconds)

    def mean(self, x: Tensor, weight: float = 1.0) -> tuple[Tensor, float]:
        result = self._comm.mean(x, weight)
        total = 2 * (self.size - 1) * (x.numel() + 1) * x.element_size()
        share = total // self.size + (self.rank < total % self.size)
        self.count(Call("mean", x.nbytes, self.size), share, share)
        return result

    def gather(self, x: Tensor) -> Tensor:
        result = self._comm.gather(x)
        moved = (self.size - 1) * x.nbytes
        self.count(Call("gather", x.nbytes, self.size), moved, moved)
        return result

    def broadcast(self, x: Tensor, src: int) -> Tensor:
        result = self._comm.broadcast(x, src)
        last = (src - 1) % self.size
        sent, received = x.nbytes * (self.rank != last), x.nbytes * (self.rank != src)
        self.count(Call("broadcast", x.nbytes, self.size), sent, received)
        return result

    def permute(self, x: Tensor, source: Sequence[int]) -> Tensor:
        result = self._comm.permute(x, source)
        moved = x.nbytes * (source[self.rank] != self.rank)
        self.count(Call("permute", moved, self.size), moved, moved)
        return result

    def all_to_all(self, x: Tensor) -> Tensor:
        result = self._comm.all_to_all(x)
        moved = x.nbytes // self.size * (self.size - 1)
        self.count(Call("all_to_all", x.nbytes, self.size), moved, moved)
        return result

    def split(self, color: int, name: str = "") -> Metered:
        return Metered(self._comm.split(color, name), self)

    def sent(self, x: Tensor) -> Tensor:
        return self._comm.sent(x)

    def start(self, task: Callable[[], T]) -> Pending[T]:
        return self._comm.start(task)

    def decide(self) -> Decision:
        return self._comm.decide()

    def meets(self, number: int, wanted: bool) -> bool:
        return self._comm.meets(number, wanted)

    @property
    def broken(self) -> bool:
        return self._comm.broken

    def renewal(self) -> BackgroundTask[Group]:
        return self._comm.renewal()

    def renew(self) -> Group:
        return self._comm.renew()

    def settle(self) -> None:
        self._comm.settle()

    def reusing(self) -> Metered:
        return Metered(self._comm.reusing(), self)

    def recycle(self) -> None:
        self._comm.recycle()
