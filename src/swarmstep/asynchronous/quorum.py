"""Quorum: rounds that close without the slowest; what comes late enters the next one."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar, final

from torch import Tensor

from swarmstep.arguments import Checked
from swarmstep.asynchronous.contract import SERVER, Mailbox, Message, Timer
from swarmstep.asynchronous.jobs import Ledger, ServerMethod, WorkerState, blank
from swarmstep.asynchronous.merging import RULES, Direction, check_direction, flat_settings, scale
from swarmstep.asynchronous.outer import Outer
from swarmstep.asynchronous.work import Work
from swarmstep.cards import ASYNCHRONOUS, Card
from swarmstep.comm.base import rank_ordered_sum
from swarmstep.errors import UsageError


@dataclasses.dataclass
class QuorumState(Ledger):
    """What the server remembers; its version counts the rounds that have closed."""

    points: dict[int, Tensor]  # x [P] by version, of those that a worker computes at
    holds: list[int]  # [W] the version of each worker's job
    waiting: list[tuple[int, int, Tensor]]  # (worker, delay, x' or, if late, D [P]) that enter when it closes
    idle: list[int]  # workers that get their next job then


@final
@dataclasses.dataclass(frozen=True)
class Quorum(Checked, ServerMethod):
    """A round closes `grace` seconds after K of W workers have delivered, or when nobody is left to wait for.

    ::

        x'_i = where the work leads from x at hand-out
        tau = rounds that have closed since hand-out
        D_i = x[-tau] - x'_i
        y_i = x - scale(tau, i) D_i                  x'_i itself where tau = 0 and the scale is 1
        g = x - (sum_i w_i y_i) / (sum_i w_i)        over all that has come since the last round
        x = outer(x, g)

    Who delivers in time waits for the close and then gets the new x, as in a round. Who comes late gets the
    present x at once, and its result enters the round that is open; so a slow worker never idles. Only if the
    quorum is there already does it wait, too, for the rest of the grace at most: x is then about to be old.
    Late results do not count toward the quorum, so that a round always has K results of its own.

    A worker that is behind by less than the grace is in time again. If all are equally fast, one that fell behind
    by more gains what the others wait for it, the grace, in each round; with grace 0 it stays late.

    Workers come and go, as `ServerMethod` says: the quorum is all that are there, if they are fewer than K, and
    who comes gets the present x.

    Args:
        workers: W, at least 1.
        work: what a worker does with a job.
        outer: the server's optimizer, a step for each round.
        quorum: K, 1 to W. With W a round of all: `DiLoCo`.
        grace: seconds, virtual or real, from the K-th result to the close, at least 0.
        rule: the scale, one of RULES: see `merging.scale`. Only "rescaled" scales results in time, too.
        ignore: R: a result with tau >= R is dropped; 0: none is.
        direction: what becomes of a late result that does not go the way of the outer momentum; None: nothing.
        weights: w, of each worker, above 0; the examples of its jobs, say. Empty: all the same.

    Raises:
        UsageError: an argument is out of its range.

    Cost: a worker sends P and receives P for each job; the server as much for all. Memory: the server keeps x,
    with momentum 2 P more, the results of the open round, and each version of x that a worker still computes
    at.

    Source: Douillard et al., Decoupled DiLoCo, arXiv 2604.21428, of which the abstract was read: a minimum
    quorum, a grace window, weights. Ours: all the rules above; the grace is a number, where theirs adapts; the
    weights are given, where theirs, as a collection of optimizers has them (zij), are tokens times tokens per
    step; no fragments.
    """

    card: ClassVar[Card] = ASYNCHRONOUS["quorum"]

    workers: int
    work: Work
    outer: Outer
    quorum: int
    grace: float = 0.0
    rule: str = "constant"
    ignore: int = 0
    direction: Direction | None = None
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise UsageError(f"rule: expected one of {', '.join(RULES)}, found {self.rule!r}")
        if not 1 <= self.quorum <= self.workers or not 0 <= self.grace < math.inf or self.ignore < 0:
            raise UsageError(
                f"expected quorum 1 to workers, grace of at least 0, ignore of at least 0; found workers "
                f"{self.workers}, quorum {self.quorum}, grace {self.grace}, ignore {self.ignore}"
            )
        if self.weights and (len(self.weights) != self.workers or not all(0 < w < math.inf for w in self.weights)):
            raise UsageError(f"weights: expected {self.workers} numbers above 0, or none; found {self.weights}")
        check_direction(self.direction, self.outer)

    @property
    def settings(self) -> dict[str, Any]:
        return flat_settings(self)

    def init(self, node: int, x: Tensor) -> QuorumState | WorkerState:
        if node != SERVER:
            return WorkerState(node, 0, [], {})
        known = blank(node, x, self.workers)
        return QuorumState(**known, points={0: known["x"]}, holds=[0] * self.workers, waiting=[], idle=[])

    def start(self, state: QuorumState | WorkerState, box: Mailbox) -> None:
        if isinstance(state, QuorumState):
            for worker in range(self.workers):
                self._hand_out(state, worker, box)

    def compute(self, x: Tensor, worker: int, number: int, results: int, memory: dict[str, Any]) -> Tensor:
        return self.work.end(x, worker, number, results, memory)

    def on_left(self, state: QuorumState | WorkerState, node: int, box: Mailbox) -> None:
        assert isinstance(state, QuorumState)
        gone = [*range(self.workers)] if node == SERVER else [node]
        for worker in gone:
            state.lose(worker)
            state.holds[worker] = state.version
        state.idle = [worker for worker in state.idle if worker not in gone]
        self._close_if_all_wait(state, box)

    def on_joined(self, state: QuorumState | WorkerState, node: int, given: int, box: Mailbox) -> None:
        assert isinstance(state, QuorumState)
        state.welcome(node, given)
        self._hand_out(state, node, box)

    def timer(self, state: QuorumState | WorkerState) -> Timer | None:
        if isinstance(state, QuorumState) and self._complete(state):
            return Timer(state.version, self.grace)
        return None

    def on_timer(self, state: QuorumState | WorkerState, box: Mailbox) -> None:
        assert isinstance(state, QuorumState)
        self._close(state, box)

    def received(self, state: QuorumState, message: Message, box: Mailbox) -> None:
        worker, delay = message.source, state.take(message, self.ignore)
        if delay is not None:
            sent = message.x
            if delay:
                sent = state.points[state.version - delay] - sent
                if self.direction:
                    sent = self.direction.turned(sent, state.memory.get("momentum"))
            state.waiting.append((worker, delay, sent))
        if delay != 0 and not self._complete(state):
            self._hand_out(state, worker, box)
            return
        state.idle.append(worker)
        self._close_if_all_wait(state, box)

    def _complete(self, state: QuorumState) -> bool:
        here = sum(state.here)
        return here > 0 and sum(not delay for _, delay, _ in state.waiting) >= min(self.quorum, here)

    def _close_if_all_wait(self, state: QuorumState, box: Mailbox) -> None:
        if state.waiting and state.idle and len(state.idle) == sum(state.here):
            self._close(state, box)

    def _leads_to(self, state: QuorumState, worker: int, delay: int, sent: Tensor) -> Tensor:
        """Return y [P] of a result."""
        factor = scale(self.rule, state, worker, delay)
        if not delay and factor == 1:
            return sent
        return state.x - factor * (sent if delay else state.x - sent)

    def _close(self, state: QuorumState, box: Mailbox) -> None:
        weights = self.weights or (1.0,) * self.workers
        parts = sorted(state.waiting, key=lambda part: part[0])
        total = rank_ordered_sum([weights[part[0]] * self._leads_to(state, *part) for part in parts])
        g = state.x - total / sum(weights[worker] for worker, _, _ in parts)
        state.version += 1
        state.x = state.points[state.version] = self.outer.step(state.x, g, state.memory, state.version)
        idle, state.waiting, state.idle = sorted(state.idle), [], []
        for worker in idle:
            self._hand_out(state, worker, box)

    def _hand_out(self, state: QuorumState, worker: int, box: Mailbox) -> None:
        """Give a worker the present model."""
        state.holds[worker] = state.version
        state.points = {
            version: x for version, x in state.points.items() if version in {*state.holds, state.version}
        }
        state.give(worker, box)
