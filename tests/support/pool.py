"""One pool of real gloo processes for the whole test session.

A test hands `Pool.run` a function at the top level of its module and picklable arguments; the function is
called as function(comm, *arguments) in the first `workers` processes, each with a real DistComm. After a
failure the pool checks that its processes still meet each other, and starts new ones if they do not.
"""

from __future__ import annotations

import os
import pickle
import time
import traceback
import warnings
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from typing import Any

import pytest
import torch

from forking import CONTEXT

SIZE = 4
LIMIT = 90.0  # seconds for one call, the start included; far more than any takes
HEALTH = 20.0  # seconds for the processes to meet after a failure
GRACE = 5.0  # seconds for all of them to end


class Pool:
    """`size` processes that stay alive between tests."""

    def __init__(self, size: int = SIZE) -> None:
        self.size = size
        self._processes: list[Any] = []
        self._ends: list[Connection] = []
        self._store: Any = None
        self.starts = 0

    def run(self, function: Any, *arguments: Any, workers: int = 0, exact: bool = True) -> list[Any]:
        """Return what each process returned, in rank order; raise the first exception, if any (0: all workers)."""
        outcomes = self.outcomes(function, *arguments, workers=workers, exact=exact)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        return outcomes

    def outcomes(self, function: Any, *arguments: Any, workers: int = 0, exact: bool = True) -> list[Any]:
        """Return what each process returned or raised."""
        if not self._processes:
            self._start()
        outcomes = self._call(function, arguments, workers or self.size, exact, LIMIT)
        if any(isinstance(outcome, BaseException) for outcome in outcomes) and not self._healthy():
            self.close()
        return outcomes

    def _call(self, function: Any, arguments: Any, workers: int, exact: bool, limit: float) -> list[Any]:
        job = pickle.dumps((function, arguments, workers, exact))
        try:
            for end in self._ends[:workers]:
                end.send_bytes(job)
            return self._answers(workers, limit)
        except BaseException:  # the test ran out of time, say: what they answer later would be taken for the next
            self.close()
            raise

    def _answers(self, workers: int, limit: float) -> list[Any]:
        outcomes: dict[int, Any] = {}
        deadline = time.monotonic() + limit
        while len(outcomes) < workers:
            waiting = {self._ends[rank]: rank for rank in range(workers) if rank not in outcomes}
            ready = wait(list(waiting), max(0.0, deadline - time.monotonic()))
            if not ready:
                missing = sorted(waiting.values())
                raise TimeoutError(f"no answer within {limit:g} s from ranks {missing}; answered: {outcomes}")
            for end in ready:
                outcomes[waiting[end]] = _received(end)
        return [outcomes[rank] for rank in range(workers)]

    def _healthy(self) -> bool:
        """Whether every process still meets all others, and none is left over from the call before."""
        try:
            met = self._call(meet, (self.starts, time.monotonic()), self.size, True, HEALTH)
        except (TimeoutError, OSError):
            return False
        return all(answer is True for answer in met)

    def _start(self) -> None:
        from swarmstep.comm.process_groups import serve_store

        self._store, port = serve_store()
        for rank in range(self.size):
            here, there = CONTEXT.Pipe()
            process = CONTEXT.Process(target=_serve, args=(there, rank, self.size, port), daemon=True)
            process.start()
            there.close()
            self._ends.append(here)
            self._processes.append(process)
        self.starts += 1

    def close(self) -> None:
        """End the processes; the next call starts new ones."""
        for end in self._ends:
            end.close()
        deadline = time.monotonic() + GRACE
        for process in self._processes:
            process.join(max(0.0, deadline - time.monotonic()))
            process.kill()
            process.join()
        self._processes, self._ends, self._store = [], [], None


@pytest.fixture(scope="session")
def pool() -> Iterator[Pool]:
    """Real gloo processes; see the module."""
    pool = Pool()
    yield pool
    pool.close()


def meet(comm: Any, *nonce: float) -> bool:
    """Gather a number that only this call knows."""
    mine = torch.tensor(nonce, dtype=torch.float64)
    return bool((comm.gather(mine) == mine).all())


def _received(end: Connection) -> Any:
    try:
        return pickle.loads(end.recv_bytes())
    except EOFError:
        return RuntimeError("the process ended without an answer")


def _serve(end: Connection, rank: int, size: int, port: int) -> None:
    """Answer calls until the parent closes its end."""
    import torch.distributed as dist

    from swarmstep import DistComm

    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", "a Synchronizer ended without finish")  # many tests need no result
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1"}
    os.environ |= {"MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    world = DistComm.from_env("gloo", exact=True, patience=LIMIT)
    groups = {}
    for k in range(1, size):
        groups[k] = dist.new_group(list(range(k)))
        dist.new_group(list(range(k, size)))  # so that every rank has made as many, as DistComm.split asks
    while True:
        try:
            function, arguments, workers, exact = pickle.loads(end.recv_bytes())
        except EOFError:
            break
        group: Any = groups.get(workers, dist.group.WORLD)
        try:
            answer = function(DistComm(group, exact=exact, patience=LIMIT), *arguments)
            reply = pickle.dumps(answer)
        except Exception as error:
            reply = _packed(error)
        end.send_bytes(reply)
    world.close()


def _packed(error: Exception) -> bytes:
    text = "".join(traceback.format_exception(error))
    try:
        assert isinstance(pickle.loads(pickle.dumps(error)), type(error))
    except Exception:
        error = RuntimeError(text)
    error.__traceback__ = None
    if hasattr(error, "add_note"):
        error.add_note(text)
    return pickle.dumps(error)
