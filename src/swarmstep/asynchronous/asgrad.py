"""AsGrad: a server that hands out jobs and takes a step when a result arrives; also asynchronous DiLoCo."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from swarmstep.arguments import Checked
from swarmstep.asynchronous.contract import SERVER, Mailbox, Message, Method
from swarmstep.asynchronous.merging import RULES, Direction, arrived, check_direction, flat_settings, scale
from swarmstep.asynchronous.outer import Outer
from swarmstep.asynchronous.work import Work
from swarmstep.cards import ASYNCHRONOUS, Card
from swarmstep.errors import UsageError
from swarmstep.seeding import generator

ASSIGNMENTS = ("pure", "random", "shuffled")


@dataclasses.dataclass
class ServerState:
    """What the server remembers; lists [W] are indexed by worker."""

    node: int
    x: Tensor  # the model [P]
    version: int  # steps that the server has taken
    handed: int  # jobs handed out after the first W
    received: list[int]  # [W] results
    entered: list[int]  # [W] of them those that count
    late: list[int]  # [W] their delays, summed
    dropped: list[tuple[int, int]]  # (worker, number of its job) of the results that were ignored
    waiting: list[tuple[int, float, Tensor]]  # (worker, scale, D [P]) that will enter with the next step
    memory: dict[str, Tensor]  # of the outer optimizer


@dataclasses.dataclass
class WorkerState:
    """What a worker remembers."""

    node: int
    done: int  # jobs
    jobs: list[tuple[int, int, Tensor]]  # (version, results, point [P]) of those it holds, oldest first
    memory: dict[str, Any]  # of the work


@final
@dataclasses.dataclass(frozen=True)
class AsGrad(Checked, Method[Any]):
    """A server with the model; each worker computes a job at the model that the job came with.

    ::

        D = work(x at hand-out; data of the worker that got the job)
        tau = steps of the server since hand-out
        g = (1/b) sum of the b results that have arrived, each times scale(tau, worker)
        x = outer(x, g)                             then b new jobs, with the new x

    With `Gradient` this is asynchronous SGD, with `Displacement` asynchronous DiLoCo. All W workers get a job at
    the start. A worker may hold several jobs; it does them in the order in which they came.

    `assign`, who gets a new job: "pure", the worker that has just delivered; "random", any, uniformly; "shuffled",
    all in a random order, which is drawn anew after W jobs.

    Args:
        workers: W, at least 1.
        work: what a worker does with a job.
        outer: the server's optimizer.
        assign: one of ASSIGNMENTS.
        rule: the scale of a result, one of RULES: see `merging.scale`.
        wait: b, 1 to W: results that the server waits for; W with "pure" is mini-batch SGD, or a round.
        ignore: R, Ringmaster's: a result with tau >= R is dropped, and a new job handed out; 0: none is.
        seed: of the assignment.
        direction: what becomes of a result with tau > 0 that does not go the way of the momentum; None: nothing.

    Raises:
        UsageError: an argument is out of its range.

    Cost: a worker sends P and receives P for each job; the server as much for all. Memory: the server keeps x,
    with momentum 2 P more, the b results it waits for, and each version of x that a worker still computes at.

    Source: Islamov, Safaryan, Alistarh, AsGrad, arXiv 2310.20452, for pure, random and shuffled assignment;
    waiting is not in their public code, and is ours as written here. Delay-adaptive steps are those of the public
    code of Mishchenko et al., NeurIPS 2022. Ringmaster ASGD ignores results of delay R and more. Rescaled ASGD,
    arXiv 2605.13434, makes steps proportional to the time a worker computes; ours counts results, whose number is
    inversely proportional to it, and needs no clock. Ours are also: one job for each at the start, any combination
    of the options, sums in the order of the workers, and the scale 1 / (1 + tau).
    """

    card: ClassVar[Card] = ASYNCHRONOUS["asgrad"]
    has_server: ClassVar[bool] = True

    workers: int
    work: Work
    outer: Outer
    assign: str = "pure"
    rule: str = "constant"
    wait: int = 1
    ignore: int = 0
    seed: int = 0
    direction: Direction | None = None

    def __post_init__(self) -> None:
        for name, value, choices in (("assign", self.assign, ASSIGNMENTS), ("rule", self.rule, RULES)):
            if value not in choices:
                raise UsageError(f"{name}: expected one of {', '.join(choices)}, found {value!r}")
        if self.workers < 1 or not 1 <= self.wait <= self.workers or self.ignore < 0:
            raise UsageError(
                f"expected workers of at least 1, wait 1 to workers, ignore of at least 0; found workers "
                f"{self.workers}, wait {self.wait}, ignore {self.ignore}"
            )
        check_direction(self.direction, self.outer)

    @property
    def steps(self) -> int:
        return self.work.steps

    @property
    def settings(self) -> dict[str, Any]:
        return flat_settings(self)

    def init(self, node: int, x: Tensor) -> ServerState | WorkerState:
        if node != SERVER:
            return WorkerState(node, 0, [], {})
        none = [0] * self.workers
        return ServerState(node, x.clone(), 0, 0, [*none], [*none], [*none], [], [], {})

    def start(self, state: ServerState | WorkerState, box: Mailbox) -> None:
        if isinstance(state, ServerState):
            for worker in range(self.workers):
                box.post(worker, _job(state))

    def ready(self, state: ServerState | WorkerState) -> bool:
        return isinstance(state, WorkerState) and bool(state.jobs)

    def on_step(self, state: ServerState | WorkerState, box: Mailbox) -> None:
        assert isinstance(state, WorkerState)
        version, results, x = state.jobs.pop(0)
        d = self.work(x, state.node, state.done, results, state.memory)
        box.post(SERVER, Message(state.node, (version, state.done), d))
        state.done += 1

    def on_message(self, state: ServerState | WorkerState, message: Message, box: Mailbox) -> None:
        if isinstance(state, WorkerState):
            version, results = map(int, message.numbers)
            state.jobs.append((version, results, message.x))
        else:
            self._take(state, message, box)

    def result(self, states: Mapping[int, ServerState | WorkerState]) -> Tensor:
        server = states[SERVER]
        assert isinstance(server, ServerState)
        return server.x.clone()

    def _take(self, state: ServerState, message: Message, box: Mailbox) -> None:
        """Let a result count, wait for others, or drop it; each once."""
        worker, number, delay = arrived(state, message)
        if self.ignore and delay >= self.ignore:
            state.dropped.append((worker, number))
            self._hand_out(state, worker, box)
            return
        state.entered[worker] += 1
        state.late[worker] += delay
        d = message.x
        if self.direction and delay:
            d = self.direction.turned(d, state.memory.get("momentum"))
        state.waiting.append((worker, scale(self.rule, state.entered, worker, delay), d))
        if len(state.waiting) < self.wait:
            return
        delivered = [worker for worker, _, _ in state.waiting]
        parts = [d if scale == 1 else scale * d for _, scale, d in sorted(state.waiting, key=lambda part: part[0])]
        state.waiting = []
        g = sum(parts[1:], parts[0]) / self.wait if self.wait > 1 else parts[0]
        state.version += 1
        state.x = self.outer.step(state.x, g, state.memory, state.version)
        for each in delivered:
            self._hand_out(state, each, box)

    def _hand_out(self, state: ServerState, delivered: int, box: Mailbox) -> None:
        """Give the present model to the next worker."""
        to, W = delivered, self.workers
        if self.assign == "random":
            to = int(torch.randint(W, (1,), generator=generator(self.seed, "assign", state.handed)))
        elif self.assign == "shuffled":
            order = torch.randperm(W, generator=generator(self.seed, "shuffle", state.handed // W))
            to = int(order[state.handed % W])
        state.handed += 1
        box.post(to, _job(state))


def _job(state: ServerState) -> Message:
    return Message(SERVER, (state.version, sum(state.entered)), state.x)
