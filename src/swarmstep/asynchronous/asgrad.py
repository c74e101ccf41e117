"""AsGrad: a server that hands out jobs and takes a step when a result arrives; also asynchronous DiLoCo."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from swarmstep.arguments import Checked
from swarmstep.asynchronous.contract import SERVER, Mailbox, Message, Method
from swarmstep.asynchronous.outer import Outer
from swarmstep.asynchronous.work import Work
from swarmstep.cards import ASYNCHRONOUS, Card
from swarmstep.errors import CollectiveMismatch, UsageError
from swarmstep.seeding import generator

ASSIGNMENTS = ("pure", "random", "shuffled")
REASONS = ("stale", "left", "void")
RULES = ("constant", "delay-adaptive", "staleness", "rescaled")


@dataclasses.dataclass
class ServerState:
    """What the server remembers; lists [W] are indexed by worker."""

    node: int
    x: Tensor  # the model [P]
    version: int  # steps that the server has taken
    handed: int  # jobs handed out after the first W; with "shuffled" also the turns of workers that are not there
    given: list[int]  # [W] jobs, lost ones included: the number of the worker's next one
    under_way: list[list[int]]  # [W] the numbers of those whose results have not come yet
    entered: list[int]  # [W] results that count
    dropped: list[tuple[int, int, str]]  # (worker, number of its job, one of REASONS) of those that do not
    here: list[bool]  # [W] whether the worker is there
    free: list[int]  # for each job that nobody can do now, the worker that had it, or whose result made it
    base: list[int]  # [W] `entered` when a worker came or went last, for "rescaled"
    waiting: list[tuple[int, float, Tensor]]  # (worker, scale, D [P]) that will enter with the next step
    memory: dict[str, Tensor]  # of the outer optimizer


@dataclasses.dataclass
class WorkerState:
    """What a worker remembers."""

    node: int
    done: int  # jobs, which others of this number may have done: the number of its next one
    jobs: list[tuple[int, int, Tensor]]  # (version, number, point [P]) of those it holds, oldest first
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

    `rule`, the scale of a result: "constant", 1; "delay-adaptive", W / max(W, tau); "staleness", 1 / (1 + tau);
    "rescaled", n / (W n_i), where n_i of the n results that count are of worker i: a worker that delivers k times
    as often counts 1/k as much each time, so that none has more say than another.

    Workers come and go. The results under way of one that is lost are dropped, and as many jobs handed out again,
    at the newest model: with "pure" to the same worker, when it is back; else to those that are there, as any
    other, where "random" draws among them and "shuffled" passes over who is missing. If nobody is there, each that
    comes gets one; the rest follow with the next result. So there are always W jobs. A step waits for as many
    results as workers are there, if those are fewer than b. "rescaled" counts anew at each change, with the number
    of workers that are there as W. A worker that comes back gets new numbers for its jobs, thus other batches, and
    its memory, such as the inner optimizer's state, is empty. A server that comes back from a checkpoint has lost
    all workers; what was handed out after the checkpoint is dropped when its worker tells of it.

    `ServerState.dropped` has the reason: "stale", ignored; "left", the worker, or the connection to it, was lost;
    "void", handed out after the checkpoint from which the server has come back. Always, for each worker,
    given = entered + dropped + under way.

    Args:
        workers: W, at least 1.
        work: what a worker does with a job.
        outer: the server's optimizer.
        assign: one of ASSIGNMENTS.
        rule: one of RULES.
        wait: b, 1 to W: results that the server waits for; W with "pure" is mini-batch SGD, or a round.
        ignore: R, Ringmaster's: a result with tau >= R is dropped, and a new job handed out; 0: none is.
        seed: of the assignment.

    Raises:
        UsageError: an argument is out of its range.

    Cost: a worker sends P and receives P for each job; the server as much for all. Memory: the server keeps x,
    with momentum 2 P more, the b results it waits for, and each version of x that a worker still computes at.

    Source: Islamov, Safaryan, Alistarh, AsGrad, arXiv 2310.20452, for pure, random and shuffled assignment;
    waiting is not in their public code, and is ours as written here. Delay-adaptive steps are those of the public
    code of Mishchenko et al., NeurIPS 2022. Ringmaster ASGD ignores results of delay R and more. Rescaled ASGD,
    arXiv 2605.13434, makes steps proportional to the time a worker computes; ours counts results, whose number is
    inversely proportional to it, and needs no clock. Ours are also: one job for each at the start, any combination
    of the options, sums in the order of the workers, the scale 1 / (1 + tau), and all about workers that come and
    go.
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

    def __post_init__(self) -> None:
        for name, value, choices in (("assign", self.assign, ASSIGNMENTS), ("rule", self.rule, RULES)):
            if value not in choices:
                raise UsageError(f"{name}: expected one of {', '.join(choices)}, found {value!r}")
        if self.workers < 1 or not 1 <= self.wait <= self.workers or self.ignore < 0:
            raise UsageError(
                f"expected workers of at least 1, wait 1 to workers, ignore of at least 0; found workers "
                f"{self.workers}, wait {self.wait}, ignore {self.ignore}"
            )

    @property
    def steps(self) -> int:
        return self.work.steps

    @property
    def settings(self) -> dict[str, Any]:
        own = {name: value for name, value in vars(self).items() if name not in ("work", "outer")}
        return {**own, "steps": self.steps, **{f"outer.{name}": value for name, value in vars(self.outer).items()}}

    def init(self, node: int, x: Tensor) -> ServerState | WorkerState:
        if node != SERVER:
            return WorkerState(node, 0, [], {})
        none = [0] * self.workers
        idle: list[list[int]] = [[] for _ in none]
        here = [True] * self.workers
        return ServerState(node, x.clone(), 0, 0, [*none], idle, [*none], [], here, [], [*none], [], {})

    def start(self, state: ServerState | WorkerState, box: Mailbox) -> None:
        if isinstance(state, ServerState):
            for worker in range(self.workers):
                _give(state, worker, box)

    def ready(self, state: ServerState | WorkerState) -> bool:
        return isinstance(state, WorkerState) and bool(state.jobs)

    def on_step(self, state: ServerState | WorkerState, box: Mailbox) -> None:
        assert isinstance(state, WorkerState)
        version, number, x = state.jobs.pop(0)
        d = self.work(x, state.node, number, state.memory)
        box.post(SERVER, Message(state.node, (version, number), d))
        state.done = number + 1

    def on_message(self, state: ServerState | WorkerState, message: Message, box: Mailbox) -> None:
        if isinstance(state, WorkerState):
            version, number = map(int, message.numbers)
            state.jobs.append((version, number, message.x))
        else:
            self._take(state, message, box)

    def given(self, state: ServerState | WorkerState) -> int:
        assert isinstance(state, WorkerState)
        return state.jobs[-1][1] + 1 if state.jobs else state.done

    def on_left(self, state: ServerState | WorkerState, node: int, box: Mailbox) -> None:
        assert isinstance(state, ServerState)
        for worker in range(self.workers) if node == SERVER else [node]:
            lost, state.under_way[worker] = state.under_way[worker], []
            state.dropped += [(worker, number, "left") for number in lost]
            state.free += [worker] * len(lost)
            state.here[worker] = False
        state.base = [*state.entered]
        self._step_if_due(state)
        self._hand_out(state, box)

    def on_joined(self, state: ServerState | WorkerState, node: int, given: int, box: Mailbox) -> None:
        assert isinstance(state, ServerState)
        state.dropped += [(node, number, "void") for number in range(state.given[node], given)]
        state.given[node] = max(state.given[node], given)
        state.here[node], state.base = True, [*state.entered]
        self._step_if_due(state)
        own = [origin for origin in state.free if self.assign != "pure" or origin == node]
        if own:
            state.free.remove(own[0])
            _give(state, node, box)

    def result(self, states: Mapping[int, ServerState | WorkerState]) -> Tensor:
        server = states[SERVER]
        assert isinstance(server, ServerState)
        return server.x.clone()

    def _take(self, state: ServerState, message: Message, box: Mailbox) -> None:
        """Let a result count, wait for others, or drop it; each once."""
        worker, (version, number) = message.source, map(int, message.numbers)
        if state.under_way[worker][:1] != [number]:
            raise CollectiveMismatch(
                f"server, step {state.version}: worker {worker} delivered its job {number}, expected the first of "
                f"{state.under_way[worker]}; a message was lost or came twice; start from a checkpoint"
            )
        del state.under_way[worker][0]
        delay = state.version - version
        if self.ignore and delay >= self.ignore:
            state.dropped.append((worker, number, "stale"))
            state.free.append(worker)
        else:
            state.entered[worker] += 1
            state.waiting.append((worker, self._scale(state, worker, delay), message.x))
            self._step_if_due(state)
        self._hand_out(state, box)

    def _step_if_due(self, state: ServerState) -> None:
        """Take a step if enough results have come; the jobs of those who delivered them are free then."""
        waiting, here = state.waiting, sum(state.here)
        if not (waiting and here) or len(waiting) < min(self.wait, here):
            return
        parts = [d if scale == 1 else scale * d for _, scale, d in sorted(waiting, key=lambda part: part[0])]
        state.waiting = []
        g = sum(parts[1:], parts[0]) / len(parts) if len(parts) > 1 else parts[0]
        state.version += 1
        state.x = self.outer.step(state.x, g, state.memory, state.version)
        state.free += [worker for worker, _, _ in waiting]

    def _scale(self, state: ServerState, worker: int, delay: int) -> float:
        if self.rule == "delay-adaptive":
            return self.workers / max(self.workers, delay)
        if self.rule == "staleness":
            return 1 / (1 + delay)
        if self.rule == "rescaled":
            counts = [entered - before for entered, before in zip(state.entered, state.base, strict=True)]
            return sum(counts) / (sum(state.here) * counts[worker])
        return 1.0

    def _hand_out(self, state: ServerState, box: Mailbox) -> None:
        """Give the present model, for each job that is free, to the next worker, if it is there."""
        waiting, state.free = state.free, []
        for origin in waiting:
            worker = self._next(state, origin)
            if state.here[worker]:
                state.handed += 1
                _give(state, worker, box)
            else:
                state.free.append(origin)

    def _next(self, state: ServerState, origin: int) -> int:
        """Return who gets a job; one that is not there if nobody can."""
        W = self.workers
        if self.assign == "pure" or not any(state.here):
            return origin
        if self.assign == "random":
            here = [worker for worker in range(W) if state.here[worker]]
            return here[
                int(torch.randint(len(here), (1,), generator=generator(self.seed, "assign", state.handed)))
            ]
        while True:
            order = torch.randperm(W, generator=generator(self.seed, "shuffle", state.handed // W))
            worker = int(order[state.handed % W])
            if state.here[worker]:
                return worker
            state.handed += 1


def _give(state: ServerState, worker: int, box: Mailbox) -> None:
    """Give a worker a job with the present model."""
    number = state.given[worker]
    state.given[worker] += 1
    state.under_way[worker].append(number)
    box.post(worker, Message(SERVER, (state.version, number), state.x))
