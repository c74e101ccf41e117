"""Many workers in one process: one thread each, one running at a time, deterministic.

A baton is passed on at each collective, in rank order; torch's random state is swapped with it, so each worker
has a random stream of its own. A breakpoint stops all workers, and workers that call different collectives get an
error that names them instead of a deadlock.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic

import torch
from torch import Tensor

from swarmstep.comm.background import Done, T
from swarmstep.comm.base import checked_rows, checked_source, checked_src, divided, rank_ordered_sum, weighted
from swarmstep.comm.group import KEPT, Decision, Group, not_elastic
from swarmstep.errors import CollectiveMismatch, CommError, UsageError

Call = tuple[Any, ...]  # what must be equal on all ranks of a collective: verb, shape, dtype, arguments


@dataclass
class _Rendezvous:
    """A group of workers (by world rank) and their parts of the collective under way."""

    members: tuple[int, ...]
    calls: dict[int, Call] = field(default_factory=dict[int, Call])
    brought: dict[int, Any] = field(default_factory=dict[int, Any])
    results: dict[int, Any] = field(default_factory=dict[int, Any])


class _Stopped(BaseException):
    """Ends the threads of the other workers once one has failed; the caller never sees it."""


class _World(Generic[T]):
    """The baton and the threads."""

    def __init__(self, train: Callable[[Group], T], workers: int) -> None:
        self.train = train
        self.workers = workers
        self.turns = [threading.Semaphore(0) for _ in range(workers)]
        self.over = threading.Semaphore(0)
        self.waits: dict[int, _Rendezvous] = {}  # workers waiting in a collective that is not complete
        self.done: set[int] = set()
        self.returned: dict[int, T] = {}
        self.failure: BaseException | None = None
        self.random = [torch.get_rng_state()] * workers

    def run(self) -> list[T]:
        everyone = _Rendezvous(tuple(range(self.workers)))
        threads = [
            threading.Thread(target=self._worker, args=(SimComm(self, everyone, rank),), daemon=True)
            for rank in range(self.workers)
        ]
        callers_state = torch.get_rng_state()
        for thread in threads:
            thread.start()
        self.turns[0].release()
        try:
            self.over.acquire()
        except BaseException as error:  # Ctrl-C in the caller's thread
            self.failure = error
        if self.failure:
            for turn in self.turns:
                turn.release()
        for thread in threads:
            thread.join()
        torch.set_rng_state(callers_state)
        if self.failure:
            raise self.failure
        return [self.returned[rank] for rank in range(self.workers)]

    def _worker(self, comm: SimComm) -> None:
        rank = comm.rank
        try:
            self._take_turn(rank)
            self.returned[rank] = self.train(comm)
            self.done.add(rank)
            self._pass_on(rank)
        except _Stopped:
            pass
        except BaseException as error:
            if self.failure is None:
                self.failure = error
            self.over.release()

    def _take_turn(self, rank: int) -> None:
        self.turns[rank].acquire()
        if self.failure:
            raise _Stopped
        torch.set_rng_state(self.random[rank])

    def _pass_on(self, rank: int) -> None:
        """Pass the baton to the next worker, in rank order, that is neither waiting nor done."""
        for step in range(1, self.workers + 1):
            other = (rank + step) % self.workers
            if other not in self.waits and other not in self.done:
                self.turns[other].release()
                return
        if len(self.done) < self.workers:
            raise CollectiveMismatch("collective mismatch: " + self._positions())
        self.over.release()

    def _positions(self) -> str:
        positions = [f"rank {r} has returned" for r in sorted(self.done)]
        positions += [f"rank {r} called {_spell(w.calls[r])}" for r, w in sorted(self.waits.items())]
        return ", ".join(positions) + "; all ranks of a group must make the same calls in the same order"

    def meet(self, group: _Rendezvous, rank: int, call: Call, brought: Any, combine: Callable[..., Any]) -> Any:
        """Take part in a collective: wait for the others, and return this worker's share of the result.

        Args:
            group: whose collective it is.
            rank: of this worker in the world.
            call: what must be the same on all ranks.
            brought: this worker's argument.
            combine: returns the results of all members, given their arguments, both in rank order.
        """
        if self.failure:
            raise _Stopped
        for other, others_call in group.calls.items():
            if others_call != call:
                self.waits[rank] = group
                group.calls[rank] = call
                raise CollectiveMismatch(
                    f"collective mismatch: rank {other} called {_spell(others_call)}, "
                    f"rank {rank} called {_spell(call)}"
                )
        group.calls[rank], group.brought[rank] = call, brought
        if len(group.brought) < len(group.members):
            self.waits[rank] = group
            self.random[rank] = torch.get_rng_state()
            self._pass_on(rank)
            self._take_turn(rank)
        else:
            results = combine([group.brought[member] for member in group.members])
            group.results = dict(zip(group.members, results, strict=True))
            group.calls, group.brought = {}, {}
            for member in group.members:
                self.waits.pop(member, None)
        result = group.results.pop(rank)
        if isinstance(result, CommError):
            raise result
        return result


def _spell(call: Call) -> str:
    verb, *rest = call
    return f"{verb}({', '.join(map(str, rest))})"


class SimComm(Group):
    """One worker's view of a group within one process; made by `simulate`."""

    def __init__(self, world: _World[Any], group: _Rendezvous, world_rank: int) -> None:
        self._world = world
        self._group = group
        self._world_rank = world_rank
        self.rank = group.members.index(world_rank)
        self.size = len(group.members)
        self._parts: dict[str, SimComm] = {}

    @property
    def elastic(self) -> bool:
        return False

    @property
    def epoch(self) -> int:
        return 0

    @property
    def names(self) -> tuple[str, ...]:
        return ()

    @property
    def sources(self) -> tuple[int | None, ...]:
        return ()

    def decide(self) -> Decision:
        return KEPT

    def renew(self) -> Group:
        raise not_elastic(self)

    def start(self, task: Callable[[], T]) -> Done[T]:
        return Done(task)

    def settle(self) -> None:
        """Nothing is under way: a task has run when `start` returns."""

    def reusing(self) -> SimComm:
        return self

    def recycle(self) -> None:
        """Nothing is reused: all results are new tensors."""

    def clock(self) -> float:
        """Return this worker's own processor time: what the others compute meanwhile does not count."""
        return time.thread_time()

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

        def combine(colors: list[int]) -> list[_Rendezvous]:
            groups = {
                c: _Rendezvous(tuple(m for m, d in zip(members, colors, strict=True) if d == c))
                for c in set(colors)
            }
            return [groups[c] for c in colors]

        part = SimComm(self._world, self._meet(("split", name), color, combine), self._world_rank)
        if name:
            self._parts[name] = part
        return part


def _kind(x: Tensor) -> tuple[Any, ...]:
    return tuple(x.shape), x.dtype


def simulate(train: Callable[[Group], T], workers: int) -> list[T]:
    """Run `train(comm)` once for each of `workers` workers inside this process, and return what they return.

    Deterministic: the same function gives the same numbers each time, and the same as real processes that add in
    rank order (`DistComm(exact=True)`). Each worker starts with the caller's torch random state and has a stream
    of its own from then on; the caller's is left as it was. The global random states of Python and NumPy are not
    swapped. The first exception of a worker is raised here.

    Args:
        train: called in a thread for each worker, one running at a time.
        workers: how many, at least 1.

    Raises:
        UsageError: `workers` is below 1.
        CollectiveMismatch: the workers call different collectives, or some return while others wait.
    """
    if workers < 1:
        raise UsageError(f"simulate: expected workers >= 1, found {workers}")
    return _World(train, workers).run()
