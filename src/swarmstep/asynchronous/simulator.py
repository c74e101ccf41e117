"""A seeded event queue with virtual time: who finishes when, from given speeds."""

from __future__ import annotations

import copy
import dataclasses
import heapq
import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from swarmstep.asynchronous.contract import Message, Method
from swarmstep.asynchronous.nodes import LOST, MESSAGE, STEP, TIMER, Event, Nodes
from swarmstep.checkpoint.fields import field, same
from swarmstep.errors import UsageError
from swarmstep.network.speeds import Speeds
from swarmstep.seeding import generator


class Simulator:
    """All nodes of a method in one process, in virtual time.

    A worker that is `ready` finishes after `method.steps` times its seconds per step; a message arrives `latency`
    later; a timer runs out after its seconds. The queue is a heap of (time, count, kind, node, source or number of
    the timer): of events at the same time, the one that was foreseen first happens first. Everything follows from
    the arguments, bit for bit.

    Args:
        method: what the nodes do.
        x: the common start [P].
        seconds: of each worker per local step, above 0, and what follows from them, or `Speeds`.
        jitter: of plain seconds, as in `Speeds`, with this seed; 0 to below 1.
        latency: seconds that each message travels, at least 0.
        lost: the share of messages that are lost, 0 to below 1; only for methods that bear it.
        seed: of jitter and losses.

    Attributes:
        now: the virtual time, in seconds.
        computed: [W] seconds of the steps that each worker has finished.
        order: the events so far.

    Raises:
        UsageError: an argument is out of its range.
    """

    def __init__(
        self,
        method: Method[Any],
        x: Tensor,
        seconds: Sequence[float] | Speeds,
        *,
        jitter: float = 0.0,
        latency: float = 0.0,
        lost: float = 0.0,
        seed: int = 0,
    ) -> None:
        if isinstance(seconds, Speeds) and jitter:
            raise UsageError(f"jitter: expected it in Speeds, which was given, found {jitter} beside it")
        speeds = seconds if isinstance(seconds, Speeds) else Speeds(tuple(seconds), jitter, seed=seed)
        if len(speeds.seconds) != method.workers:
            raise UsageError(f"seconds: expected {method.workers} numbers above 0, found {list(speeds.seconds)}")
        if not (0 <= latency < math.inf and 0 <= lost < 1):
            raise UsageError(
                f"expected latency of at least 0, lost 0 to below 1; found latency {latency}, lost {lost}"
            )
        if lost and not method.may_lose:
            raise UsageError(f"lost: {method.card.name} waits for every message; expected 0, found {lost}")
        self._method = method
        self._settings = {
            "method": method.card.name,
            "elements": x.numel(),
            **{f"method.{name}": value for name, value in method.settings.items()},
            **{f"speeds.{name}": value for name, value in speeds.settings.items()},
            "latency": latency,
            "lost": lost,
            "seed": seed,
        }
        self._speeds, self._latency, self._lost, self._seed = speeds, latency, lost, seed
        self._heap: list[tuple[float, int, str, int, int]] = []
        self._count = 0  # of events foreseen
        self._computing = dict.fromkeys(method.nodes, False)
        self._begun = dict.fromkeys(method.nodes, 0)  # jobs, for the jitter
        self._durations = dict.fromkeys(method.nodes, 0.0)  # of the jobs that nodes compute
        self.computed = [0.0] * method.workers
        self._timers: dict[int, int] = {}  # number of the one that was started last, by node
        self.now = 0.0
        self.order: list[Event] = []
        self._nodes = Nodes(method, x, self._posted)
        self._nodes.start()
        for node in method.nodes:
            self._begin(node)

    @property
    def states(self) -> Mapping[int, Any]:
        """Each node's state, as it is now."""
        return self._nodes.states

    @property
    def under_way(self) -> list[tuple[int, Message]]:
        """The messages that have not arrived yet, with the node that each goes to."""
        return [(to, message) for (_, to), queue in self._nodes.under_way.items() for message in queue]

    def result(self) -> Tensor:
        """Return the model [P] as it is now."""
        return self._method.result(self._nodes.states)

    def run(self, *, until: float = math.inf, events: int | None = None) -> None:
        """Let events happen, up to a time or a number of them, whichever comes first.

        Args:
            until: virtual seconds; events at this time still happen.
            events: how many.

        Raises:
            UsageError: neither is given, or no node has anything left to do.
        """
        if events is None and until == math.inf:
            raise UsageError("run: expected until or events, found neither; the workers go on for ever")
        last = math.inf if events is None else len(self.order) + events
        while len(self.order) < last:
            if not self._heap:
                raise UsageError(f"virtual time {self.now:g} s: no worker computes and no message is under way")
            if self._heap[0][0] > until:
                self.now = max(self.now, until)
                return
            self.now, _, kind, node, source = heapq.heappop(self._heap)
            if kind == TIMER:
                if not self._runs(node, source):
                    continue
                source = node
            self.order.append(Event(self.now, kind, node, source))
            if kind == STEP:
                self._computing[node] = False
                self.computed[node] += self._durations[node]
            self._nodes.perform(self.order[-1])
            self._begin(node)

    def _foresee(self, time: float, kind: str, node: int, source: int) -> None:
        heapq.heappush(self._heap, (time, self._count, kind, node, source))
        self._count += 1

    def _begin(self, node: int) -> None:
        """Start a node's timer, and let it compute if it has something to and does not yet.

        Also one that still holds other jobs.
        """
        timer = self._method.timer(self.states[node])
        if timer and self._timers.get(node) != timer.number:
            self._timers[node] = timer.number
            self._foresee(self.now + timer.seconds, TIMER, node, timer.number)
        if self._computing[node] or not self._method.ready(self.states[node]):
            return
        self._computing[node] = True
        duration = self._speeds.duration(node, self.now, self._method.steps, self._begun[node])
        self._begun[node] += 1
        self._durations[node] = duration
        self._foresee(self.now + duration, STEP, node, node)

    def _runs(self, node: int, number: int) -> bool:
        """Return whether a timer still counts: the node may have done without it."""
        timer = self._method.timer(self.states[node])
        return timer is not None and timer.number == number

    def _posted(self, source: int, to: int) -> None:
        lost = False
        if self._lost:
            drawn = generator(self._seed, "lost", self._count)
            lost = float(torch.rand((), dtype=torch.float64, generator=drawn)) < self._lost
        self._foresee(self.now + self._latency, LOST if lost else MESSAGE, to, source)

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of all there is, as tensors and plain values: states, queue, messages under way, order."""
        return {
            "settings": copy.deepcopy(self._settings),
            "states": {node: dataclasses.asdict(state) for node, state in self.states.items()},
            "under_way": [
                (pair, [(m.source, m.numbers, m.x.clone()) for m in queue])
                for pair, queue in self._nodes.under_way.items()
            ],
            "heap": [*self._heap],
            "count": self._count,
            "computing": dict(self._computing),
            "begun": dict(self._begun),
            "durations": dict(self._durations),
            "computed": [*self.computed],
            "timers": dict(self._timers),
            "now": self.now,
            "order": [tuple(event) for event in self.order],
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from a state, bit for bit.

        Raises:
            CheckpointError: it is of a run with other settings, whose name it says.
        """
        settings = field(saved, "settings")
        for name in sorted({*self._settings, *settings}):
            same(name, self._settings.get(name), settings.get(name))
        saved = copy.deepcopy(dict(saved))
        for node, state in self.states.items():
            self._nodes.states[node] = type(state)(**field(saved, "states")[node])
        self._nodes.under_way = {
            tuple(pair): deque(Message(source, tuple(numbers), x) for source, numbers, x in queue)
            for pair, queue in field(saved, "under_way")
        }
        self._heap = [*map(tuple, field(saved, "heap"))]
        self._count, self._computing = field(saved, "count"), field(saved, "computing")
        self._begun, self._timers = field(saved, "begun"), field(saved, "timers")
        self._durations, self.computed = field(saved, "durations"), field(saved, "computed")
        self.now, self.order = field(saved, "now"), [Event(*event) for event in field(saved, "order")]
