"""AsGrad: a server that hands out jobs and takes a step when a result arrives; also asynchronous DiLoCo."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from swarmstep.arguments import Checked
from swarmstep.asynchronous.contract import SERVER, Mailbox, Message
from swarmstep.asynchronous.jobs import Ledger, ServerMethod, WorkerState, blank
from swarmstep.asynchronous.merging import RULES, Direction, check_direction, flat_settings, scale
from swarmstep.asynchronous.outer import Outer
from swarmstep.asynchronous.work import Work
from swarmstep.cards import ASYNCHRONOUS, Card
from swarmstep.errors import UsageError
from swarmstep.seeding import generator

ASSIGNMENTS = ("pure", "random", "shuffled")
RINGLEADER = "ringleader"


@dataclasses.dataclass
class ServerState(Ledger):
    """What the server remembers."""

    handed: int  # jobs handed out after the first W; with "shuffled" also the turns of workers that are not there
    free: list[int]  # for each job that nobody can do now, the worker that had it, or whose result made it
    waiting: list[tuple[int, float, Tensor]]  # (worker, scale, D [P]) that will enter with the next step
    table: dict[int, tuple[int, Tensor]]  # with "ringleader", (number, mean [P]) of each worker's results
    table_next: dict[int, tuple[int, Tensor]]  # those of the next round
    moved: list[int]  # the workers that this round has given a step to


@final
@dataclasses.dataclass(frozen=True)
class AsGrad(Checked, ServerMethod):
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

    With `rule="ringleader"` a table has the mean of each worker's results, and all workers count the same in a
    step, however often they deliver. A round is W steps, one at the arrival of a result of each worker, the first
    as soon as the table has a result of each::

        m_i = mean of the results of worker i in the table
        x = outer(x, (1/W) sum_i m_i)               at a result of a worker that has had no step in this round

    What a worker delivers after its step goes into the table of the next round. So nobody waits, and no result
    that a step uses is more than 2 W - 2 steps late. With one worker it is SGD. It goes with assign "pure", wait
    1, ignore 0 and no direction. Who is lost is not waited for; what it has delivered counts until the round ends.

    Workers come and go, as `ServerMethod` says. As many jobs as are lost are handed out again, at the newest
    model: with "pure" to the same worker, when it is back; else to those that are there, as any other, where
    "random" draws among them and "shuffled" passes over who is missing. If nobody is there, each that comes gets
    one; the rest follow with the next result. So there are always W jobs. A step waits for as many results as
    workers are there, if those are fewer than b.

    Args:
        workers: W, at least 1.
        work: what a worker does with a job.
        outer: the server's optimizer.
        assign: one of ASSIGNMENTS.
        rule: the scale of a result, one of RULES, see `merging.scale`; or "ringleader".
        wait: b, 1 to W: results that the server waits for; W with "pure" is mini-batch SGD, or a round.
        ignore: R, Ringmaster's: a result with tau >= R is dropped, and a new job handed out; 0: none is.
        seed: of the assignment.
        direction: what becomes of a result with tau > 0 that does not go the way of the momentum; None: nothing.

    Raises:
        UsageError: an argument is out of its range.

    Cost: a worker sends P and receives P for each job; the server as much for all. Memory: the server keeps x,
    with momentum 2 P more, the b results it waits for, and each version of x that a worker still computes at; with
    "ringleader" up to 2 W P for the two tables.

    Source: Islamov, Safaryan, Alistarh, AsGrad, arXiv 2310.20452, for pure, random and shuffled assignment;
    waiting is not in their public code, and is ours as written here. Delay-adaptive steps are those of the public
    code of Mishchenko et al., NeurIPS 2022. Ringmaster ASGD ignores results of delay R and more. Rescaled ASGD,
    arXiv 2605.13434, makes steps proportional to the time a worker computes; ours counts results, whose number is
    inversely proportional to it, and needs no clock. Ringleader ASGD keeps a table with one running mean for each
    worker, averages over the workers, and has delays of at most 2 W - 2; when exactly it steps was not looked up:
    the rounds above are ours, and keep that bound. Ours are also: one job for each at the start, any combination
    of the options, sums in the order of the workers, the scale 1 / (1 + tau), and all about workers that come and
    go.
    """

    card: ClassVar[Card] = ASYNCHRONOUS["asgrad"]

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
        rules = (*RULES, RINGLEADER)
        for name, value, choices in (("assign", self.assign, ASSIGNMENTS), ("rule", self.rule, rules)):
            if value not in choices:
                raise UsageError(f"{name}: expected one of {', '.join(choices)}, found {value!r}")
        if self.workers < 1 or not 1 <= self.wait <= self.workers or self.ignore < 0:
            raise UsageError(
                f"expected workers of at least 1, wait 1 to workers, ignore of at least 0; found workers "
                f"{self.workers}, wait {self.wait}, ignore {self.ignore}"
            )
        check_direction(self.direction, self.outer)
        plain = (self.assign, self.wait, self.ignore, self.direction) == ("pure", 1, 0, None)
        if self.rule == RINGLEADER and not plain:
            raise UsageError(
                f"rule ringleader: expected assign pure, wait 1, ignore 0 and no direction; found assign "
                f"{self.assign}, wait {self.wait}, ignore {self.ignore}, direction {self.direction}"
            )

    @property
    def settings(self) -> dict[str, Any]:
        return flat_settings(self)

    def init(self, node: int, x: Tensor) -> ServerState | WorkerState:
        if node != SERVER:
            return WorkerState(node, 0, [], {})
        tables: dict[str, Any] = {"table": {}, "table_next": {}, "moved": []}
        return ServerState(**blank(node, x, self.workers), handed=0, free=[], waiting=[], **tables)

    def start(self, state: ServerState | WorkerState, box: Mailbox) -> None:
        if isinstance(state, ServerState):
            for worker in range(self.workers):
                state.give(worker, box)

    def compute(self, x: Tensor, worker: int, number: int, results: int, memory: dict[str, Any]) -> Tensor:
        return self.work(x, worker, number, results, memory)

    def on_left(self, state: ServerState | WorkerState, node: int, box: Mailbox) -> None:
        assert isinstance(state, ServerState)
        for worker in range(self.workers) if node == SERVER else [node]:
            state.free += [worker] * state.lose(worker)
        self._step_if_due(state)
        self._hand_out(state, box)

    def on_joined(self, state: ServerState | WorkerState, node: int, given: int, box: Mailbox) -> None:
        assert isinstance(state, ServerState)
        state.welcome(node, given)
        self._step_if_due(state)
        own = [origin for origin in state.free if self.assign != "pure" or origin == node]
        if own:
            state.free.remove(own[0])
            state.give(node, box)

    def received(self, state: ServerState, message: Message, box: Mailbox) -> None:
        worker, delay = message.source, state.take(message, self.ignore)
        if delay is None:
            state.free.append(worker)
        elif self.rule == RINGLEADER:
            self._enter_table(state, worker, message.x)
        else:
            d = message.x
            if self.direction and delay:
                d = self.direction.turned(d, state.memory.get("momentum"))
            state.waiting.append((worker, scale(self.rule, state, worker, delay), d))
            self._step_if_due(state)
        self._hand_out(state, box)

    def _enter_table(self, state: ServerState, worker: int, d: Tensor) -> None:
        """Let a result count in the mean of its worker, and take the step that this worker has in the round."""
        _end_round(state)
        table = state.table_next if worker in state.moved else state.table
        count, mean = table.get(worker, (0, d))
        table[worker] = count + 1, mean + (d - mean) / (count + 1) if count else d
        state.free.append(worker)
        if worker not in state.moved and all(worker in state.table for worker in state.present):
            means = [mean for _, (_, mean) in sorted(state.table.items())]
            self._step(state, sum(means[1:], means[0]) / len(means) if len(means) > 1 else means[0])
            state.moved.append(worker)

    def _step_if_due(self, state: ServerState) -> None:
        """Take a step if enough results have come; the jobs of those who delivered them are free then."""
        waiting, here = state.waiting, sum(state.here)
        if not (waiting and here) or len(waiting) < min(self.wait, here):
            return
        parts = [d if scale == 1 else scale * d for _, scale, d in sorted(waiting, key=lambda part: part[0])]
        state.waiting = []
        g = sum(parts[1:], parts[0]) / len(parts) if len(parts) > 1 else parts[0]
        self._step(state, g)
        state.free += [worker for worker, _, _ in waiting]

    def _step(self, state: ServerState, g: Tensor) -> None:
        state.version += 1
        state.x = self.outer.step(state.x, g, state.memory, state.version)

    def _hand_out(self, state: ServerState, box: Mailbox) -> None:
        """Give the present model, for each job that is free, to the next worker, if it is there."""
        waiting, state.free = state.free, []
        for origin in waiting:
            worker = self._next(state, origin)
            if state.here[worker]:
                state.handed += 1
                state.give(worker, box)
            else:
                state.free.append(origin)

    def _next(self, state: ServerState, origin: int) -> int:
        """Return who gets a job; one that is not there if nobody can."""
        W = self.workers
        if self.assign == "pure" or not any(state.here):
            return origin
        if self.assign == "random":
            here = state.present
            return here[
                int(torch.randint(len(here), (1,), generator=generator(self.seed, "assign", state.handed)))
            ]
        while True:
            order = torch.randperm(W, generator=generator(self.seed, "shuffle", state.handed // W))
            worker = int(order[state.handed % W])
            if state.here[worker]:
                return worker
            state.handed += 1


def _end_round(state: ServerState) -> None:
    """Begin the next round of "ringleader" if each worker that is there has had its step."""
    if state.moved and all(worker in state.moved for worker in state.present):
        state.table, state.table_next, state.moved = state.table_next, {}, []
