"""How the workers of `simulate` take turns: a baton is passed on at each collective, in rank order.

torch's random state is swapped with the baton, so each worker has a random stream of its own. There is one such
state for all threads of a process, so there is one world at a time; a worker waits while it runs one of its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic

import torch
from torch import Tensor

from swarmstep.comm.background import T
from swarmstep.errors import CollectiveMismatch, CommError, UsageError
from swarmstep.seeding import mix

Call = tuple[Any, ...]  # what must be equal on all ranks of a collective: verb, shape, dtype, arguments


@dataclass
class Meeting:
    """A group of workers (by world rank) and their parts of the collective under way."""

    members: tuple[int, ...]
    calls: dict[int, Call] = field(default_factory=dict[int, Call])
    brought: dict[int, Any] = field(default_factory=dict[int, Any])
    results: dict[int, Any] = field(default_factory=dict[int, Any])


class _Stopped(BaseException):
    """Ends the threads of the other workers once one has failed; the caller never sees it."""


class _Process:
    """What all worlds of this process share.

    Attributes:
        busy: held while a world runs that is not inside another.
        running: the thread that has the baton, in the innermost world (0: none has it).
        worlds: that which this thread is a worker of, as `worlds.own`, if it is one.
    """

    busy = threading.Lock()
    running = 0
    worlds = threading.local()


class World(Generic[T]):
    """The baton and the threads.

    Args:
        work: called with this world, the group of all workers, and the rank, in a thread for each worker.
        workers: how many.

    Attributes:
        now: each worker's virtual time, seconds from the start.
    """

    def __init__(self, work: Callable[[World[T], Meeting, int], T], workers: int) -> None:
        self.work = work
        self.now = [0.0] * workers
        self.workers = workers
        self.outer: World[Any] | None = getattr(_Process.worlds, "own", None)
        self.turns = [threading.Semaphore(0) for _ in range(workers)]
        self.over: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.waits: dict[int, Meeting] = {}  # workers waiting in a collective that is not complete
        self.done: set[int] = set()
        self.returned: dict[int, T] = {}
        self.failure: BaseException | None = None
        self.random = _random_states(workers)

    def run(self) -> list[T]:
        """Run all workers and return what they return, in rank order."""
        if self.outer:
            return self._run()
        if not _Process.busy.acquire(blocking=False):
            raise UsageError(
                "simulate: another thread of this process is in simulate; expected one at a time, since torch's "
                "random state is one for all threads: call one after the other, or use a process for each"
            )
        try:
            return self._run()
        finally:
            _Process.busy.release()

    def _run(self) -> list[T]:
        everyone = Meeting(tuple(range(self.workers)))
        threads = [
            threading.Thread(target=self._worker, args=(everyone, rank), daemon=True)
            for rank in range(self.workers)
        ]
        callers_state, caller = torch.get_rng_state(), _Process.running
        _Process.running = 0
        try:
            try:
                for thread in threads:
                    thread.start()
                self.turns[0].release()
                self._wait()
            except BaseException as error:  # Ctrl-C in the caller's thread
                self.failure = error
                _stop(_Process.running)
            if self.failure:
                for turn in self.turns:
                    turn.release()
            for thread in threads:
                if thread.is_alive():
                    thread.join()
        finally:
            _Process.running = caller
            torch.set_rng_state(callers_state)
        if self.failure:
            raise self.failure
        return [self.returned[rank] for rank in range(self.workers)]

    def _worker(self, everyone: Meeting, rank: int) -> None:
        try:
            _Process.worlds.own = self
            self._take_turn(rank)
            self.returned[rank] = self.work(self, everyone, rank)
            self.done.add(rank)
            self._pass_on(rank)
        except BaseException as error:
            if self.failure is None:
                self.failure = error
            self.over.put(None)

    def _wait(self) -> None:
        """Wait until this world is over; a signal that comes just before a wait begins is handled after it."""
        while True:
            with contextlib.suppress(queue.Empty):
                return self.over.get(timeout=0.2)

    @property
    def _failed(self) -> bool:
        """Whether this world is over before its end, or the one that it is in."""
        return self.failure is not None or (self.outer is not None and self.outer._failed)

    def _take_turn(self, rank: int) -> None:
        self.turns[rank].acquire()
        _Process.running = threading.get_ident()
        if self._failed:
            raise _Stopped
        torch.set_rng_state(self.random[rank])

    def _pass_on(self, rank: int) -> None:
        """Pass the baton to the next worker, in rank order, that is neither waiting nor done."""
        for step in range(1, self.workers + 1):
            other = (rank + step) % self.workers
            if other not in self.waits and other not in self.done:
                _Process.running = 0
                self.turns[other].release()
                return
        if len(self.done) < self.workers:
            raise CollectiveMismatch("collective mismatch: " + self._positions())
        _Process.running = 0
        self.over.put(None)

    def _positions(self) -> str:
        positions = [f"rank {r} has returned" for r in sorted(self.done)]
        positions += [f"rank {r} called {_spell(w.calls[r])}" for r, w in sorted(self.waits.items())]
        return ", ".join(positions) + "; all ranks of a group must make the same calls in the same order"

    def meet(self, group: Meeting, rank: int, call: Call, brought: Any, combine: Callable[..., Any]) -> Any:
        """Take part in a collective: wait for the others, and return this worker's share of the result.

        Args:
            group: whose collective it is.
            rank: of this worker in the world.
            call: what must be the same on all ranks.
            brought: this worker's argument.
            combine: returns the results of all members, given their arguments, both in rank order.
        """
        if self._failed:
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
            latest = max(self.now[member] for member in group.members)
            for member in group.members:
                self.waits.pop(member, None)
                self.now[member] = latest
        result = group.results.pop(rank)
        if isinstance(result, CommError):
            raise result
        return result


def _spell(call: Call) -> str:
    verb, *rest = call
    return f"{verb}({', '.join(map(str, rest))})"


def _random_states(workers: int) -> list[Tensor]:
    """Return the state of torch's global generator for each worker: rank 0's is the present one."""
    state = torch.get_rng_state()
    seed = int(torch.randint(2**62, (), generator=torch.Generator().set_state(state)))
    return [state, *(torch.Generator().manual_seed(mix(seed, rank)).get_state() for rank in range(1, workers))]


def _stop(thread: int) -> None:
    """Raise _Stopped in a thread, wherever it computes, as Ctrl-C does in a program's main thread."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(_Stopped))
