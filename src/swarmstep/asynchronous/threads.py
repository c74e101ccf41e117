"""The nodes as threads of one process, with real time instead of a virtual one."""

from __future__ import annotations

import queue
import threading
import time
from typing import Any, NamedTuple

from torch import Tensor

from swarmstep.asynchronous.contract import Message, Method
from swarmstep.asynchronous.nodes import MESSAGE, STEP, TIMER, Box, Countdown, Event, check_receiver
from swarmstep.errors import PeerLost, UsageError


class Threaded(NamedTuple):
    """What the nodes have done.

    Args:
        states: of each node, at the end.
        order: the events that led to them, their times in seconds since the start: `replay` leads to the same.
    """

    states: dict[int, Any]
    order: list[Event]


class _Run:
    """What the threads of a run share."""

    def __init__(self, method: Method[Any], x: Tensor, events: int, limit: float) -> None:
        self.method, self.events, self.limit = method, events, limit
        self.states: dict[int, Any] = {node: method.init(node, x) for node in method.nodes}
        self.arrived: dict[int, queue.SimpleQueue[Message | None]] = {n: queue.SimpleQueue() for n in method.nodes}
        self.order: list[Event] = []
        self.errors: list[BaseException] = []
        self.ended = False
        self._recording, self._computing = threading.Lock(), threading.Lock()
        self._start = time.perf_counter()

    def box(self, node: int) -> Box:
        def deliver(to: int, message: Message) -> None:
            check_receiver(self.method, node, to)
            self.arrived[to].put(message)

        return Box(deliver)

    def record(self, kind: str, node: int, source: int) -> bool:
        """Note an event that is about to happen; return whether it still may.

        Before it happens, so that what follows from it elsewhere stands later in the order.
        """
        with self._recording:
            if self.ended:
                return False
            self.order.append(Event(time.perf_counter() - self._start, kind, node, source))
            if len(self.order) == self.events:
                self.end()
        return True

    def end(self) -> None:
        self.ended = True
        for each in self.arrived.values():
            each.put(None)

    def live(self, node: int) -> None:
        """Be a node until the run ends."""
        try:
            state, box, timer = self.states[node], self.box(node), Countdown(self.method)
            while not self.ended:
                self._happen(node, state, box, timer.left(state))
        except BaseException as error:
            with self._recording:
                self.errors.append(error)
                self.end()

    def _happen(self, node: int, state: Any, box: Box, left: float | None) -> None:
        """Let the next event of a node happen: a message if one is there, else a step, else what comes first."""
        method, ready = self.method, self.method.ready(state)
        try:
            message = self.arrived[node].get(not ready, self.limit if left is None else left)
        except queue.Empty:
            if left is not None and (left == 0 or not ready):
                if self.record(TIMER, node, node):
                    method.on_timer(state, box)
            elif not ready:
                raise PeerLost(f"node {node}: nothing came within the limit of {self.limit:g} s") from None
            elif self.record(STEP, node, node):
                with self._computing:
                    method.on_step(state, box)
            return
        if message is not None and self.record(MESSAGE, node, message.source):
            method.on_message(state, message, box)


def run_threads(method: Method[Any], x: Tensor, events: int, *, limit: float = 60.0) -> Threaded:
    """Let all nodes of a method work in threads of this process, in the order in which they happen to run.

    One node computes at a time, since a method has one model, and torch one generator: so this gives orders of a
    real machine, not speed.

    Args:
        method: any.
        x: the common start [P], on the CPU.
        events: after so many the run ends, at least 1.
        limit: seconds that a node waits for a message, above 0.

    Raises:
        UsageError: an argument is out of its range.
        PeerLost: a node waited for longer than the limit.
        Exception: what a node raised.
    """
    if events < 1 or limit <= 0:
        raise UsageError(f"expected events of at least 1, limit above 0; found events {events}, limit {limit}")
    run = _Run(method, x, events, limit)
    for node, state in run.states.items():
        method.start(state, run.box(node))
    threads = [threading.Thread(target=run.live, args=[node], daemon=True) for node in method.nodes]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    finally:
        run.end()
    if run.errors:
        raise run.errors[0]
    return Threaded(run.states, run.order)
