"""Many workers in one process: one thread each, one running at a time, deterministic.

Workers that call different collectives get an error that names them instead of a deadlock, and a breakpoint stops
all of them. How they take turns is in `swarmstep.comm.world`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from swarmstep.arguments import check_type
from swarmstep.comm.background import Done, T
from swarmstep.comm.base import checked_rows, checked_source, checked_src, divided, rank_ordered_sum, weighted
from swarmstep.comm.group import Group, InProcessGroup
from swarmstep.comm.world import Call, Meeting, World
from swarmstep.errors import CommError, UsageError


class SimComm(InProcessGroup):
    """One worker's view of a group within one process; made by `simulate`."""

    def __init__(self, world: World[Any], group: Meeting, world_rank: int, virtual_time: bool) -> None:
        self._world, self._virtual_time = world, virtual_time
        self._group = group
        self._world_rank = world_rank
        self.rank = group.members.index(world_rank)
        self.size = len(group.members)
        self._parts: dict[str, SimComm] = {}

    def start(self, task: Callable[[], T]) -> Done[T]:
        return _Overlapped(task, self._world.now, self._world_rank)

    def clock(self) -> float:
        """Return virtual time, or this worker's own processor time: what the others compute does not count."""
        return self._world.now[self._world_rank] if self._virtual_time else time.thread_time()

    def elapse(self, seconds: float) -> None:
        if self._virtual_time:
            self._world.now[self._world_rank] += seconds
        else:
            time.sleep(seconds)

    def _meet(self, call: Call, brought: Any, combine: Callable[..., Any]) -> Any:
        return self._world.meet(self._group, self._world_rank, call, brought, combine)

    def mean(self, x: Tensor, weight: float = 1.0) -> tuple[Tensor, float]:
        def combine(terms: list[Tensor]) -> list[Any]:
            total = rank_ordered_sum(terms)
            try:
                return [divided(total.clone(), x, self.size) for _ in terms]
            except CommError as error:
                return [error] * self.size

        term = torch.empty(x.numel() + 1, dtype=x.dtype, device=x.device)
        return self._meet(("mean", *_kind(x)), weighted(x, weight, self.size, term), combine)

    def gather(self, x: Tensor) -> Tensor:
        return self._meet(("gather", *_kind(x)), x, lambda rows: [torch.stack(rows) for _ in rows])

    def broadcast(self, x: Tensor, src: int) -> Tensor:
        src = checked_src(src, self.size)
        return self._meet(("broadcast", src, *_kind(x)), x, lambda rows: [rows[src].clone() for _ in rows])

    def permute(self, x: Tensor, source: Sequence[int]) -> Tensor:
        source = checked_source(source, self.size)
        return self._meet(("permute", *source, *_kind(x)), x, lambda rows: [rows[s].clone() for s in source])

    def all_to_all(self, x: Tensor) -> Tensor:
        def combine(rows: list[Tensor]) -> list[Tensor]:
            return [torch.stack([row[rank] for row in rows]) for rank in range(self.size)]

        return self._meet(("all_to_all", *_kind(x)), checked_rows(x, self.size), combine)

    def sent(self, x: Tensor) -> Tensor:
        return x

    def split(self, color: int, name: str = "") -> SimComm:
        if name in self._parts:
            return self._parts[name]
        members = self._group.members

        def combine(colors: list[int]) -> list[Meeting]:
            groups = {
                c: Meeting(tuple(m for m, d in zip(members, colors, strict=True) if d == c)) for c in set(colors)
            }
            return [groups[c] for c in colors]

        meeting = self._meet(("split", name), color, combine)
        part = SimComm(self._world, meeting, self._world_rank, self._virtual_time)
        if name:
            self._parts[name] = part
        return part


class _Overlapped(Done[T]):
    """A task that virtual time does not wait for, but where its result is needed."""

    def __init__(self, task: Callable[[], T], now: list[float], rank: int) -> None:
        self._now, self._rank, began = now, rank, now[rank]
        super().__init__(task)
        self._end, now[rank] = now[rank], began

    def result(self) -> T:
        self._now[self._rank] = max(self._now[self._rank], self._end)
        return super().result()


def _kind(x: Tensor) -> tuple[Any, ...]:
    return tuple(x.shape), x.dtype


def simulate(train: Callable[[Group], T], workers: int, *, virtual_time: bool = False) -> list[T]:
    """Run `train(comm)` once for each of `workers` workers inside this process, and return what they return.

    Deterministic: the same function after the same `torch.manual_seed` gives the same numbers each time, and where
    the workers seed themselves, the same as real processes that add in rank order (`DistComm(exact=True)`).

    Each worker has random numbers of its own, whatever the others draw: rank 0 goes on from the caller's torch
    random state, as a loop without workers would, and each other rank from a seed that follows from that state and
    its rank. The caller's state is left as it was. Only torch's generator of the CPU is kept for each worker; that
    of a GPU, and those of Python and NumPy, are shared: in `train`, use generators of your own instead. What torch
    sets for a thread (`no_grad`, autocast, the default device) is set within `train`.

    The first exception of a worker is raised here, and stops the others. Ctrl-C stops all of them where they are;
    if one is in a call that does not return, the second Ctrl-C stops waiting for it.

    Args:
        train: called in a thread for each worker, one running at a time.
        workers: how many, at least 1.
        virtual_time: whether `comm.clock()` is virtual: from 0, it moves by `comm.elapse(seconds)`, and in a
            collective to the time of the last of those who meet; computing and sending take none. Methods that
            decide by time are then reproducible, too. Otherwise it is each worker's own processor time.

    Raises:
        UsageError: `workers` is below 1, or another thread of this process is in `simulate`: torch's random state
            is one for all threads. A worker may call `simulate` itself.
        CollectiveMismatch: the workers call different collectives, or some return while others wait.
    """
    check_type("simulate: workers", workers, int)
    if not callable(train):
        check_type("simulate: train", train, Callable)
    if workers < 1:
        raise UsageError(f"simulate: expected workers >= 1, found {workers}")

    def work(world: World[T], everyone: Meeting, rank: int) -> T:
        return train(SimComm(world, everyone, rank, virtual_time))

    return World(work, workers).run()
