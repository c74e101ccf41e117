"""The nodes as real processes, which send to each other point to point over gloo."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Iterable
from datetime import timedelta
from types import TracebackType
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from typing_extensions import Self

from swarmstep.asynchronous.contract import SERVER, Message, Method
from swarmstep.asynchronous.nodes import MESSAGE, STEP, TIMER, Countdown, Event, act
from swarmstep.comm.process_groups import brief, close_connections
from swarmstep.errors import PeerLost, UsageError

NUMBERS = 8  # at most, in a message
HEADER = 3 + NUMBERS  # float64: count of numbers (-1: nothing more comes), size of x, index of its dtype; numbers
DTYPES = (torch.float32, torch.float64)
EVER = timedelta(days=365)
TAGS = (1 << 19, (1 << 19) + 1)  # of headers, and of what follows them; far from those of other modules


class GlooMailbox:
    """A node's mailbox between processes: rank r is the r-th of `method.nodes`, so that the server is the last.

    A thread for each peer receives all the time, so that a sender never waits for what the receiver computes, and
    a peer that dies is noticed at once. Leave the `with` block on all nodes: each then tells its peers that
    nothing more comes, and waits for the same from them. After an error the connections are closed, and the peers
    raise PeerLost.

    Args:
        method: whose nodes these are.
        group: a gloo group of as many ranks as there are nodes (None: the default group).
        limit: seconds that a message may take to be sent, and that a node waits for the next one; above 0.

    Raises:
        UsageError: there is no group, or it has another size, or is not gloo.
    """

    def __init__(self, method: Method[Any], group: Any = None, limit: float = 60.0) -> None:
        if not dist.is_initialized():
            raise UsageError(
                'GlooMailbox: no process group; call torch.distributed.init_process_group("gloo") first'
            )
        self._group: Any = group or dist.group.WORLD
        nodes, size = method.nodes, dist.get_world_size(self._group)
        if size != len(nodes) or dist.get_backend(self._group) != "gloo" or limit <= 0:
            raise UsageError(
                f"{method.card.name}: expected a gloo group of {len(nodes)} ranks, one for each of {nodes}, and "
                f"a limit above 0; found {dist.get_backend(self._group)}, {size} ranks, limit {limit}"
            )
        self._ranks = dict(zip(nodes, dist.get_process_group_ranks(self._group), strict=True))
        self.node = nodes[dist.get_rank(self._group)]
        others = [node for node in nodes if node != self.node]
        self._peers = [SERVER] if method.has_server and self.node != SERVER else others
        self._limit = limit
        self._arrived: queue.SimpleQueue[Message | PeerLost | None] = queue.SimpleQueue()
        self._parked: dict[int, deque[Message]] = {node: deque() for node in others}
        self.ended = not self._peers  # whether all the others have nothing more to send
        if self.ended:
            self._arrived.put(None)
        self._left, self._lock = len(self._peers), threading.Lock()
        self._threads = [threading.Thread(target=self._listen, args=[p], daemon=True) for p in self._peers]
        for thread in self._threads:
            thread.start()

    def post(self, to: int, message: Message) -> None:
        """Send a message; returns when it is sent, whatever `to` computes.

        Raises:
            UsageError: it has more than 8 numbers, or x is neither float32 nor float64.
            PeerLost: it could not be sent within the limit.
        """
        if len(message.numbers) > NUMBERS or message.x.dtype not in DTYPES:
            found = f"{len(message.numbers)} numbers, {message.x.dtype}"
            raise UsageError(
                f"message to {to}: expected up to {NUMBERS} numbers, float32 or float64; found {found}"
            )
        x = message.x.detach().cpu().contiguous()
        self._send(to, [len(message.numbers), x.numel(), DTYPES.index(x.dtype), *message.numbers], x)

    def _send(self, to: int, numbers: list[float], x: Tensor | None) -> None:
        header = torch.zeros(HEADER, dtype=torch.float64)
        header[: len(numbers)] = torch.tensor(numbers, dtype=torch.float64)
        try:
            for tag, data in zip(TAGS, (header, x), strict=True):
                if data is not None and data.numel():
                    work: Any = dist.isend(data, self._ranks[to], self._group, tag=tag)
                    work.wait(timedelta(seconds=self._limit))
        except RuntimeError as error:
            raise self._lost(f"sending to {_name(to)}", error) from error

    def poll(self) -> Message | None:
        return self._take(None, wait=False)

    def receive(self, source: int | None = None, within: float | None = None) -> Message | None:
        """Return the next message, of `source` if given, and wait for it; None if nothing more comes.

        Args:
            source: None: any.
            within: seconds; None is also returned if nothing comes within them (None: the limit counts).

        Raises:
            PeerLost: none came within the limit, or a connection was lost.
        """
        return self._take(source, wait=True, within=within)

    def _take(self, source: int | None, wait: bool, within: float | None = None) -> Message | None:
        parked = [queue for node, queue in self._parked.items() if queue and source in (None, node)]
        if parked:
            return parked[0].popleft()
        while (found := self._next(source, wait, within)) is not None:
            if isinstance(found, PeerLost):
                raise found
            if source in (None, found.source):
                return found
            self._parked[found.source].append(found)
        return None

    def _next(self, source: int | None, wait: bool, within: float | None) -> Message | PeerLost | None:
        """Return what the threads have next: None once all peers have ended, or where nobody waits for it."""
        try:
            found = self._arrived.get(wait, self._limit if within is None else within)
        except queue.Empty:
            if not wait or within is not None:
                return None
            return self._lost(f"waiting for {_name(source)}", TimeoutError("nothing came"))
        if not isinstance(found, Message):
            self._arrived.put(found)  # for whoever asks again
        return found

    def _listen(self, peer: int) -> None:
        """Receive from a peer until it ends; runs in a thread, which gloo ends if the peer is lost."""
        try:
            while True:
                header = torch.zeros(HEADER, dtype=torch.float64)
                self._wait_for(header, peer, TAGS[0])
                count, size, kind, *numbers = header.tolist()
                if count < 0:
                    break
                x = torch.empty(int(size), dtype=DTYPES[int(kind)])
                if size:
                    self._wait_for(x, peer, TAGS[1])
                self._arrived.put(Message(peer, tuple(numbers[: int(count)]), x))
        except BaseException as error:
            self._arrived.put(self._lost(f"receiving from {_name(peer)}", error))
            return
        with self._lock:
            self._left -= 1
            if not self._left:
                self.ended = True
                self._arrived.put(None)

    def _wait_for(self, data: Tensor, peer: int, tag: int) -> None:
        work: Any = dist.irecv(data, self._ranks[peer], self._group, tag=tag)
        work.wait(EVER)

    def _lost(self, what: str, why: BaseException) -> PeerLost:
        return PeerLost(
            f"{_name(self.node)}: {what} (limit {self._limit:g} s): {brief(why)}; start all nodes again, with a "
            "longer limit if one was only slow"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                for node in self._peers:
                    self._send(node, [-1], None)
                while self.receive() is not None:  # too late to count
                    pass
        except PeerLost:
            error = error or PeerLost()
            raise
        finally:
            if error is not None:
                close_connections(self._group, [*self._ranks.values()])
            for thread in self._threads:
                thread.join(1.0)


def _name(node: int | None) -> str:
    return "any node" if node is None else "the server" if node == SERVER else f"worker {node}"


class Served(NamedTuple):
    """What a server has done.

    Args:
        state: of the server, at the end.
        order: the events that led to it, their times in seconds since the start: `replay` leads to the same state.
    """

    state: Any
    order: list[Event]


def run_server(method: Method[Any], x: Tensor, box: GlooMailbox, results: int) -> Served:
    """Be the server until `results` results have come, from whoever has one. The workers call `run_worker`.

    Args:
        method: with a server, in which a worker does its jobs in the order in which they came, one result each.
        x: the start [P], on the CPU.
        box: this process's; leave its `with` block afterwards. Results that come later do not count.
        results: how many, at least 1.

    Raises:
        PeerLost: a worker is gone, or none delivered within the mailbox's limit.
    """
    state = method.init(SERVER, x)
    order: list[Event] = []
    start, came, timer = time.perf_counter(), 0, Countdown(method)
    method.start(state, box)
    while came < results:
        message = box.receive(within=timer.left(state))
        now = time.perf_counter() - start
        if message is None:
            if box.ended:
                raise PeerLost(f"the server: all workers have ended after {came} of {results} results")
            order.append(Event(now, TIMER, SERVER, SERVER))
            method.on_timer(state, box)
            continue
        worker, came = message.source, came + 1
        order += [Event(now, MESSAGE, worker, SERVER), Event(now, STEP, worker, worker)]
        order.append(Event(now, MESSAGE, SERVER, worker))
        method.on_message(state, message, box)
    return Served(state, order)


def run_worker(method: Method[Any], x: Tensor, box: GlooMailbox) -> Any:
    """Be a worker until the server ends; return the worker's state.

    Args:
        method: as the server's.
        x: the start [P]; of the server's counts what comes with the jobs.
        box: this process's.

    Raises:
        PeerLost: the server is gone, or sent no job within the mailbox's limit.
    """
    state = method.init(box.node, x)
    while (message := box.receive()) is not None:
        method.on_message(state, message, box)
        while method.ready(state) and not box.ended:
            method.on_step(state, box)
    return state


def replay_node(method: Method[Any], x: Tensor, box: GlooMailbox, order: Iterable[Event]) -> Any:
    """Be one node in a recorded order of events, with all others as processes, too; return the node's state.

    Args:
        method: any, with the hyper-parameters of the record.
        x: the start [P] of the record.
        box: this process's.
        order: the events of all nodes, as `Simulator.order` has them.

    Raises:
        UsageError: the order is of another run.
        PeerLost: a message did not come within the mailbox's limit.
    """
    state = method.init(box.node, x)
    method.start(state, box)
    for event in order:
        if event.node != box.node:
            continue
        if event.kind in (STEP, TIMER):
            act(method, state, event, box)
            continue
        message = box.receive(event.source)
        if message is None:
            raise UsageError(
                f"{event}: nothing more comes from {_name(event.source)}; the order is of another run"
            )
        if event.kind == MESSAGE:
            method.on_message(state, message, box)
    return state
