"""Nodes as real processes: a worker of a server, a peer without one, and any node in a recorded order."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from swarmstep.asynchronous.contract import SERVER, Message, Method
from swarmstep.asynchronous.links import ENDED, JOINED, Change, Links, name_of
from swarmstep.asynchronous.nodes import MESSAGE, STEP, TIMER, Event, act
from swarmstep.asynchronous.server import OVER
from swarmstep.errors import PeerLost, RunOver, UsageError

BEGUN = "begun"  # nodes without a server have; see `Links.mark`
SLICE = 0.25  # seconds between two questions whether the run is over, while the server is away


def run_worker(method: Method[Any], x: Tensor, box: Links) -> Any:
    """Be a worker until the server has all results; return the worker's state.

    A server that is lost is waited for. With each connection the worker begins anew with `Method.enter`, and tells
    what it was given before.

    Args:
        method: as the server's.
        x: the start [P]; of the server's counts what comes with the jobs.
        box: this process's.

    Raises:
        PeerLost: the server did not come, or come back, within the patience of `box`, or sent no job for so long.
        CommError: the store cannot be reached, or another process has taken this one's place.
    """
    state, given = method.init(box.node, x), 0
    while True:
        connected = SERVER in box.here
        if connected and method.ready(state):
            found = box.take()
            if found is None:
                method.on_step(state, box)
                continue
        else:
            found = _await_server(box, connected)
        if isinstance(found, Message):
            method.on_message(state, found, box)
        elif found is None or found.kind == ENDED:
            return state
        elif found.kind == JOINED:
            given = max(given, method.given(state))
            state = method.enter(box.node, x)
            box.post(SERVER, Message(box.node, (given,), torch.empty(0)))


def _await_server(box: Links, connected: bool) -> Message | Change | None:
    """Return what comes next; None if the run is over."""
    deadline = time.monotonic() + box.patience
    while (left := deadline - time.monotonic()) > 0:
        if not connected and box.marked(OVER):
            return None
        found = box.take(left if connected else min(left, SLICE))
        if found is not None:
            return found
    what = "sent no job" if connected else "was not there"
    raise PeerLost(
        f"{name_of(box.node)}: the server {what} for {box.patience:g} s; start it again, from its "
        "checkpoint, or raise patience"
    )


def run_peer(
    method: Method[Any],
    x: Tensor,
    box: Links,
    steps: int,
    *,
    listen: Callable[[Any], object] = lambda state: None,
    over: Callable[[], bool] = lambda: False,
) -> Any:
    """Be a node of a method without a server until it has counted `steps` steps; return its state.

    The first ones wait for each other, at most the patience of `box`, and begin at x. Whoever comes later begins
    with `Method.enter`.

    Args:
        method: without a server, whose state counts steps in `done`.
        x: the start [P], on the CPU.
        box: this process's; leave its `with` block afterwards.
        steps: at least 0.
        listen: called after each step with the state, to be looked at only.
        over: asked before each step, and while a newcomer waits for a model: whether to end before `steps`.

    Raises:
        UsageError: the method has a server.
        PeerLost: this node came later, and no other gave it a model within the patience of `box`.
        RunOver: this node came later, and the others have taken all steps.
        CommError: the store cannot be reached, or another process has taken this one's place.
    """
    if method.has_server:
        raise UsageError(f"run_peer: {method.card.name} has a server; call run_server and run_worker")
    if box.marked(BEGUN):
        state = method.enter(box.node, x)
    else:
        state = method.init(box.node, x)
        _gather(method, state, box)
    while state.done < steps and not over():
        ready = method.ready(state)
        found = box.take() if ready else _await_model(box, over)
        if found is not None:
            _follow(method, state, box, found)
        elif ready:
            method.on_step(state, box)
            listen(state)
    box.mark(OVER)
    return state


def _await_model(box: Links, over: Callable[[], bool]) -> Message | Change | None:
    """Return what comes next to a newcomer that has no model yet; None if the run is over."""
    deadline = time.monotonic() + box.patience
    while (left := deadline - time.monotonic()) > 0:
        if over():
            return None
        if not box.here and box.marked(OVER):
            raise RunOver(f"{name_of(box.node)}: came when the others had taken all steps; nothing is left to do")
        found = box.take(min(left, SLICE))
        if found is not None:
            return found
    raise PeerLost(
        f"{name_of(box.node)}: came when the others had begun, and none gave it a model for {box.patience:g} s; "
        "start all nodes anew"
    )


def _gather(method: Method[Any], state: Any, box: Links) -> None:
    """Wait for the others before all begin; who does not come in time is a newcomer then."""
    deadline = time.monotonic() + box.patience
    while len(box.here) < len(box.peers) and not box.marked(BEGUN) and (left := deadline - time.monotonic()) > 0:
        found = box.take(min(left, SLICE))
        if isinstance(found, Message):
            method.on_message(state, found, box)
    for peer in {*box.peers} - {*box.here}:
        method.on_left(state, peer, box)
    box.mark(BEGUN)


def _follow(method: Method[Any], state: Any, box: Links, found: Message | Change) -> None:
    if isinstance(found, Message):
        method.on_message(state, found, box)
    elif found.kind == JOINED:
        method.on_joined(state, found.node, 0, box)
    else:
        method.on_left(state, found.node, box)


def replay_node(method: Method[Any], x: Tensor, box: Links, order: Iterable[Event]) -> Any:
    """Be one node in a recorded order of events, with all others as processes, too; return the node's state.

    Args:
        method: any, with the hyper-parameters of the record.
        x: the start [P] of the record.
        box: this process's.
        order: the events of all nodes, as `Simulator.order` has them: steps, timers and messages, also lost ones.

    Raises:
        UsageError: the order is of another run.
        PeerLost: a node did not come, or is gone, or sent nothing, within the patience of `box`.
    """
    state, inbox = method.init(box.node, x), _Inbox(box)
    inbox.gather()
    method.start(state, box)
    for event in order:
        if event.node != box.node:
            continue
        if event.kind in (STEP, TIMER):
            act(method, state, event, box)
            continue
        message = inbox.message(event)
        if event.kind == MESSAGE:
            method.on_message(state, message, box)
    return state


class _Inbox:
    """Messages by their source, among nodes of which none may come or go."""

    def __init__(self, box: Links) -> None:
        self._box = box
        self._parked: dict[int, deque[Message]] = {peer: deque() for peer in box.peers}
        self._gone: dict[int, Change] = {}

    def gather(self) -> None:
        """Wait until all are there."""
        while missing := {*self._box.peers} - {*self._box.here, *self._gone}:
            self._take(f"waiting for {name_of(min(missing))}")

    def message(self, event: Event) -> Message:
        """Return the next message of the source of an event."""
        queue = self._parked[event.source]
        while not queue:
            if (gone := self._gone.get(event.source)) is None:
                self._take(f"waiting for {name_of(event.source)}")
            elif gone.kind == ENDED:
                raise UsageError(
                    f"{event}: nothing more comes from {name_of(event.source)}; the order is of another run"
                )
            else:
                raise self._lost(f"receiving from {name_of(event.source)}", gone.why)
        return queue.popleft()

    def _take(self, what: str) -> None:
        found = self._box.take(self._box.patience)
        if found is None:
            raise self._lost(what, f"nothing came for {self._box.patience:g} s")
        if isinstance(found, Message):
            self._parked[found.source].append(found)
        elif found.kind != JOINED:
            self._gone[found.node] = found

    def _lost(self, what: str, why: str) -> PeerLost:
        return PeerLost(f"{name_of(self._box.node)}: {what}: {why}; start all nodes of the replay again")
