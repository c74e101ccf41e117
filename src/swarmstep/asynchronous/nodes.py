"""All nodes of a method in one process: their states, and the messages that are under way between them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from torch import Tensor

from swarmstep.asynchronous.contract import Message, Method
from swarmstep.errors import UsageError

STEP, MESSAGE, LOST = "step", "message", "lost"
LEFT, JOINED = "left", "joined"


class Event(NamedTuple):
    """Something that has happened to a node.

    Args:
        time: when, virtual seconds.
        kind: "step": the node has finished what it computed; "message": one from `source` has arrived; "lost": one
            from `source` would have arrived; "left": `source` is lost, with all messages under way between the
            two, or, if it is the node itself, all others are; "joined": it has come or come back, and begins with
            `Method.enter`.
        node: to which it happened.
        source: the sender, of a step the node itself.
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
            if to not in self.states:
                raise UsageError(f"node {node} posted a message to {to}, expected one of {self.method.nodes}")
            self.under_way.setdefault((node, to), deque()).append(message)
            self._posted(node, to)

        return deliver

    def perform(self, event: Event) -> None:
        """Let an event happen.

        Raises:
            UsageError: it cannot: no such message is under way, or the node has nothing to compute.
        """
        _, kind, node, source, _ = event
        state, box = self.states.get(node), self._boxes.get(node)
        if (
            state is None
            or box is None
            or source not in self.states
            or kind not in (STEP, MESSAGE, LOST, LEFT, JOINED)
        ):
            kinds = f"{STEP}, {MESSAGE}, {LOST}, {LEFT} or {JOINED}"
            raise UsageError(f"{event}: expected {kinds} at one of the nodes {self.method.nodes}")
        if kind in (LEFT, JOINED):
            self._change(event)
            return
        if kind == STEP:
            if not self.method.ready(state):
                raise UsageError(f"{event}: node {node} has nothing to compute; the order is of another run")
            self.method.on_step(state, box)
            return
        queue = self.under_way.get((source, node))
        if not queue:
            raise UsageError(f"{event}: no message from {source} is under way; the order is of another run")
        message = queue.popleft()
        if kind == MESSAGE:
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
