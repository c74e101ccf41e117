"""What methods with a server have in common: jobs that are numbered and counted, and workers that do them."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from swarmstep.asynchronous.contract import SERVER, Mailbox, Message, Method
from swarmstep.asynchronous.work import Work
from swarmstep.errors import CollectiveMismatch, NotFinite

REASONS = ("stale", "left", "void")


@dataclasses.dataclass
class Ledger:
    """What a server remembers of its workers' jobs; lists [W] are indexed by worker.

    Always, for each worker, given = entered + dropped + under way.
    """

    node: int
    x: Tensor  # the model [P]
    version: int  # steps that the server has taken
    given: list[int]  # [W] jobs, lost ones included: the number of the worker's next one
    under_way: list[list[int]]  # [W] the numbers of those whose results have not come yet
    came: int  # results of all workers, with those that do not count
    entered: list[int]  # [W] results that count
    late: list[int]  # [W] their delays, summed
    dropped: list[tuple[int, int, str]]  # (worker, number of its job, one of REASONS) of those that do not
    here: list[bool]  # [W] whether the worker is there
    base: list[int]  # [W] `entered` when a worker came or went last, for "rescaled"
    memory: dict[str, Tensor]  # of the outer optimizer

    @property
    def present(self) -> list[int]:
        """The workers that are there."""
        return [worker for worker, here in enumerate(self.here) if here]

    def give(self, worker: int, box: Mailbox) -> None:
        """Give a worker a job with the present model."""
        number = self.given[worker]
        self.given[worker] += 1
        self.under_way[worker].append(number)
        box.post(worker, Message(SERVER, (self.version, number, self.came), self.x))

    def take(self, message: Message, ignore: int) -> int | None:
        """Count a result; return its delay tau, None if it does not count: it is `ignore` steps late, or more.

        Raises:
            CollectiveMismatch: it is not of the worker's oldest job.
        """
        worker, (version, number) = message.source, map(int, message.numbers)
        if self.under_way[worker][:1] != [number]:
            raise CollectiveMismatch(
                f"server, step {self.version}: worker {worker} delivered its job {number}, expected the first of "
                f"{self.under_way[worker]}; a message was lost or came twice; start from a checkpoint"
            )
        del self.under_way[worker][0]
        self.came += 1
        delay = self.version - version
        if ignore and delay >= ignore:
            self.dropped.append((worker, number, "stale"))
            return None
        self.entered[worker] += 1
        self.late[worker] += delay
        return delay

    def lose(self, worker: int) -> int:
        """Count a worker as gone; return how many of its jobs are lost."""
        lost, self.under_way[worker] = self.under_way[worker], []
        self.dropped += [(worker, number, "left") for number in lost]
        self.here[worker], self.base = False, [*self.entered]
        return len(lost)

    def welcome(self, worker: int, given: int) -> None:
        """Count a worker as there; `given` is up to which number it was given jobs before."""
        self.dropped += [(worker, number, "void") for number in range(self.given[worker], given)]
        self.given[worker] = max(self.given[worker], given)
        self.here[worker], self.base = True, [*self.entered]


def blank(node: int, x: Tensor, workers: int) -> dict[str, Any]:
    """Return the fields of a `Ledger` in which nothing has been counted and all workers are there."""
    counts = {name: [0] * workers for name in ("given", "entered", "late", "base")}
    under_way: list[list[int]] = [[] for _ in range(workers)]
    here = [True] * workers
    rest = {"under_way": under_way, "dropped": [], "here": here, "memory": {}}
    return {"node": node, "x": x.clone(), "version": 0, "came": 0, **counts, **rest}


@dataclasses.dataclass
class WorkerState:
    """What a worker remembers."""

    node: int
    done: int  # jobs, which others of this number may have done: the number of its next one
    jobs: list[tuple[int, int, int, Tensor]]  # (version, number, results, point [P]) that it holds, oldest first
    memory: dict[str, Any]  # of the work


class ServerMethod(Method[Any]):
    """A method whose workers do jobs, in the order in which a server gave them, and deliver each result.

    Workers come and go. `Ledger.dropped` has the results that do not count, with the reason: "stale", ignored;
    "left", the worker, or the connection to it, was lost; "void", handed out after the checkpoint from which the
    server has come back. A worker that comes back gets new numbers for its jobs, thus other batches, and its
    memory, such as the inner optimizer's state, is empty. A server that comes back from a checkpoint has lost all
    workers; what was handed out after the checkpoint is dropped when its worker tells of it.

    A result that is not finite raises NotFinite on the server, which names the worker, and changes nothing.
    """

    has_server: ClassVar[bool] = True
    work: Work

    @property
    def steps(self) -> int:
        return self.work.steps

    @abstractmethod
    def compute(self, x: Tensor, worker: int, number: int, results: int, memory: dict[str, Any]) -> Tensor:
        """Return what a worker delivers, [P]; arguments as of `Work`."""

    @abstractmethod
    def received(self, state: Any, message: Message, box: Mailbox) -> None:
        """Take a result in, on the server."""

    def ready(self, state: Any) -> bool:
        return isinstance(state, WorkerState) and bool(state.jobs)

    def on_step(self, state: Any, box: Mailbox) -> None:
        version, number, results, x = state.jobs.pop(0)
        result = self.compute(x, state.node, number, results, state.memory)
        box.post(SERVER, Message(state.node, (version, number), result))
        state.done = number + 1

    def on_message(self, state: Any, message: Message, box: Mailbox) -> None:
        if isinstance(state, WorkerState):
            version, number, results = map(int, message.numbers)
            state.jobs.append((version, number, results, message.x))
            return
        if not message.x.isfinite().all():
            raise NotFinite(
                f"server, step {state.version}: the result of job {int(message.numbers[1])} of worker "
                f"{message.source} is not finite; lower the learning rates, or look at that worker's data"
            )
        self.received(state, message, box)

    def given(self, state: Any) -> int:
        return state.jobs[-1][1] + 1 if state.jobs else state.done

    def result(self, states: Mapping[int, Any]) -> Tensor:
        return states[SERVER].x.clone()
