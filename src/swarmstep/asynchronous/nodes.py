"""All nodes of a method in one process: their states, and the messages that are under way between them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from torch import Tensor

from swarmstep.asynchronous.contract import Mailbox, Message, Method
from swarmstep.errors import UsageError

STEP, MESSAGE, LOST, TIMER = "step", "message", "lost", "timer"
LEFT, JOINED = "left", "joined"
KINDS = (STEP, MESSAGE, LOST, TIMER, LEFT, JOINED)


class Event(NamedTuple):
    """Something that has happened to a node.

    Args:
        time: when, virtual seconds.
        kind: "step": the node has finished what it computed; "message": one from `source` has arrived; "lost": one
            from `source` would have arrived; "timer": the one that the node asked for has run out; "left":
            `source` is lost, with all messages under way between the two, or, if it is the node itself, all
            others are; "joined": it has come or come back, and begins with `Method.enter`.
        node: to which it happened.
        source: the sender, of a step or a timer the node itself.
        given: what one that joins tells, see `Method.given`.
    """

    time: float
    kind: str
    node: int
    source: int
    given: int = 0


class Box:
    """A node's mailbox among nodes of the same process.

    Args:
        deliver: called as deliver(to, message) for each message posted.
    """

    def __init__(self, deliver: Callable[[int, Message], None]) -> None:
        self._deliver = deliver
        self.arrived: deque[Message] = deque()

    def post(self, to: int, message: Message) -> None:
        self._deliver(to, message)

    def poll(self) -> Message | None:
        return self.arrived.popleft() if self.arrived else None


def check_receiver(method: Method[Any], node: int, to: int) -> None:
    """Raise UsageError unless `to`, for which `node` has a message, is a node."""
    if to not in method.nodes:
        raise UsageError(f"node {node} posted a message to {to}, expected one of {method.nodes}")


def act(method: Method[Any], state: Any, event: Event, box: Mailbox) -> None:
    """Let a node's step or timer happen.

    Raises:
        UsageError: it has nothing to compute, or no timer.
    """
    if event.kind == STEP:
        if not method.ready(state):
            raise UsageError(f"{event}: node {event.node} has nothing to compute; the order is of another run")
        method.on_step(state, box)
        return
    if method.timer(state) is None:
        raise UsageError(f"{event}: no timer of node {event.node} is running; the order is of another run")
    method.on_timer(state, box)


class Countdown:
    """A node's timer by the clock of this machine.

    Args:
        method: whose timer it is.
    """

    def __init__(self, method: Method[Any]) -> None:
        self._method = method
        self._number: int | None = None
        self._end = 0.0

    def left(self, state: Any) -> float | None:
        """Return the seconds until the timer has run out, at least 0; None if none is to run."""
        timer = self._method.timer(state)
        if timer is None:
            self._number = None
            return None
        now = time.monotonic()
        if timer.number != self._number:
            self._number, self._end = timer.number, now + timer.seconds
        return max(0.0, self._end - now)


class Nodes:
    """The states of all nodes, and the messages under way, oldest first for each pair of nodes.

    Args:
        method: what the nodes do.
        x: the common start [P].
        posted: called as posted(source, to) after each message, to note when it will arrive.
    """

    def __init__(self, method: Method[Any], x: Tensor, posted: Callable[[int, int], None] | None = None) -> None:
        self.method, self._x = method, x
        self.states: dict[int, Any] = {node: method.init(node, x) for node in method.nodes}
        self.under_way: dict[tuple[int, int], deque[Message]] = {}  # by (source, to)
        self._posted = posted or (lambda source, to: None)
        self._boxes = {node: Box(self._sender(node)) for node in method.nodes}

    def start(self) -> None:
        """Start all nodes, in the order of `Method.nodes`."""
        for node, state in self.states.items():
            self.method.start(state, self._boxes[node])

    def _sender(self, node: int) -> Callable[[int, Message], None]:
        def deliver(to: int, message: Message) -> None:
            check_receiver(self.method, node, to)
            self.under_way.setdefault((node, to), deque()).append(message)
            self._posted(node, to)

        return deliver

    def perform(self, event: Event) -> None:
        """Let an event happen.

        Raises:
            UsageError: it cannot: no such message is under way, the node has nothing to compute, or no timer.
        """
        _, kind, node, source, _ = event
        state, box = self.states.get(node), self._boxes.get(node)
        if state is None or box is None or source not in self.states or kind not in KINDS:
            raise UsageError(
                f"{event}: expected one of {', '.join(KINDS)} at one of the nodes {self.method.nodes}"
            )
        if kind in (LEFT, JOINED):
            self._change(event)
        elif kind in (STEP, TIMER):
            act(self.method, state, event, box)
        else:
            self._arrive(event, state, box)

    def _arrive(self, event: Event, state: Any, box: Box) -> None:
        """Let the oldest message from a node to another arrive, or be lost."""
        queue = self.under_way.get((event.source, event.node))
        if not queue:
            raise UsageError(f"{event}: no message from {event.source} is under way; the order is of another run")
        message = queue.popleft()
        if event.kind == MESSAGE:
            box.arrived.append(message)
        while (arrived := box.poll()) is not None:
            self.method.on_message(state, arrived, box)

    def _change(self, event: Event) -> None:
        """Let a node lose another, or find it anew."""
        _, kind, node, other, given = event
        for pair in [*self.under_way]:
            if node in pair and (other in pair or node == other):
                del self.under_way[pair]
        if kind == LEFT:
            self.method.on_left(self.states[node], other, self._boxes[node])
        else:
            self.states[other] = self.method.enter(other, self._x)
            self.method.on_joined(self.states[node], other, given, self._boxes[node])


def replay(method: Method[Any], x: Tensor, order: Iterable[Event]) -> Nodes:
    """Return the nodes after a recorded order of events, of the simulator or of real processes; no clock runs.

    Args:
        method: with the hyper-parameters of the record.
        x: the start [P] of the record.
        order: its events; their times are not looked at.

    Raises:
        UsageError: an event cannot happen there; the message names it.
    """
    nodes = Nodes(method, x)
    nodes.start()
    for event in order:
        nodes.perform(event)
    return nodes
