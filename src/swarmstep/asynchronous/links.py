"""The connections of a node of real processes: nodes come and go, and each connection stands and falls alone."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from types import TracebackType
from typing import Any, NamedTuple

from typing_extensions import Self

from swarmstep.asynchronous.contract import SERVER, Message, Method
from swarmstep.asynchronous.link import Link, check_message
from swarmstep.comm import process_groups
from swarmstep.comm.pair import Pair
from swarmstep.comm.process_groups import FORM_TIMEOUT, brief
from swarmstep.comm.secure.auth import is_loopback
from swarmstep.comm.torch_private import TCPStore
from swarmstep.comm.witness import own_address
from swarmstep.elastic.keys import STOP, candidates_key
from swarmstep.errors import CommError, UsageError

POLL = 0.02  # seconds between two looks at the store, for each peer without a connection
JOINED, LEFT, ENDED = "joined", "left", "ended"
VARIABLES = ("SWARMSTEP_STORE", "SWARMSTEP_WORKER")


class Change(NamedTuple):
    """A connection has been made, or has ended.

    Args:
        node: the peer.
        kind: "joined"; "left", it is lost; "ended", the peer has nothing more to send.
        why: it is lost.
    """

    node: int
    kind: str
    why: str = ""


class Links:
    """A node's mailbox between processes, and its connections: to the server, or without one to all others.

    Processes meet at a store, which none of them need serve. Each connection has a number that no other has had,
    so that an old message cannot be taken for a new one. It stands and falls alone: who dies is noticed at once by
    its peers, who stands still after `silence` seconds, and the connections of the others go on. A process whose
    connection was lost makes the next one by itself. What it posts goes through the connection of which `take` has
    told last, or nowhere: messages to a node that is not there are lost.

    Leave the `with` block to tell the peers that nothing more comes; after an error they find the node lost.

    Args:
        method: whose node this is.
        node: which, one of `method.nodes`; another process may take its place, once this one is dead.
        address: (host, port) of the store, on this machine.
        run: a name of this run in the store, the same for all nodes.
        silence: seconds without a sign of life after which a peer counts as lost, at least 0.1; one that computes
            gives signs, unless it holds the interpreter lock for as long. A message must take less to arrive.
        patience: seconds to wait for the first connection, and for a peer that is lost to come back; above 0.

    Attributes:
        entry: how many processes have been this node by now, this one included.

    Raises:
        UsageError: an argument is out of its range.
        CommError: the store cannot be reached.
    """

    def __init__(
        self,
        method: Method[Any],
        node: int,
        address: tuple[str, int],
        *,
        run: str = "run",
        silence: float = 10.0,
        patience: float = 60.0,
    ) -> None:
        if node not in method.nodes or silence < 0.1 or patience <= 0:
            raise UsageError(
                f"{method.card.name}: expected one of the nodes {method.nodes}, silence of at least 0.1 s, "
                f"patience above 0; found node {node}, silence {silence}, patience {patience}"
            )
        if not is_loopback(address[0]):
            raise UsageError(
                f"{address[0]!r} is not a loopback address: asynchronous nodes do not prove a secret to each "
                "other yet; run all of them on one machine, with a store at 127.0.0.1"
            )
        self.node, self.silence, self.patience = node, silence, patience
        others = [other for other in method.nodes if other != node]
        self.peers = [SERVER] if method.has_server and node != SERVER else others
        self._address, self._prefix = address, f"swarmstep/asynchronous/{run}"
        self._open: dict[int, Link] = {}  # as `take` has told
        self._live: dict[int, Link] = {}
        self._arrived: queue.SimpleQueue[tuple[Message | Change | CommError, Link | None]] = queue.SimpleQueue()
        self._closing = threading.Event()
        with self._reaching():
            self._own_address = own_address(address[0])
            self._store = self._connect()
            self.entry = self._store.add(self._key("entries", node), 1)
        self._threads = [threading.Thread(target=self._keep, args=[p], daemon=True) for p in self.peers]
        for thread in self._threads:
            thread.start()

    @classmethod
    def from_env(cls, method: Method[Any], *, silence: float = 10.0, patience: float = 60.0) -> Self:
        """Return the links of a process that `swarmstep run --workers N` has started, N being the number of nodes.

        Slot r is the r-th of `method.nodes`: the server's is the last. Who dies is started again in its slot.

        Raises:
            UsageError: this process was started by something else, or N is another number.
            CommError: the store cannot be reached.
        """
        nodes, started = len(method.nodes), os.environ.get("SWARMSTEP_WORKERS")
        if started != str(nodes) or any(name not in os.environ for name in VARIABLES):
            raise UsageError(
                f"Links.from_env: expected to be started with swarmstep run --workers {nodes} PROGRAM.py, one for "
                f"each of the nodes {method.nodes}; found SWARMSTEP_WORKERS={started}"
            )
        store, worker = (os.environ[name] for name in VARIABLES)
        host, _, port = store.rpartition(":")
        node = method.nodes[int(worker.partition(".")[0])]
        links = cls(method, node, (host, int(port)), silence=silence, patience=patience)
        with links._reaching():
            links._store.add(candidates_key(0), 0)  # the supervisor asks whether anybody has met the others
        return links

    @property
    def here(self) -> list[int]:
        """The peers to which there is a connection, as far as `take` has told."""
        return sorted(self._open)

    def post(self, to: int, message: Message) -> None:
        """Send a message, in the background; lost if `to` is not there.

        Raises:
            UsageError: it has more than 8 numbers, or x is neither float32 nor float64.
        """
        check_message(to, message)
        if (link := self._open.get(to)) is not None:
            link.put(message)

    def take(self, seconds: float = 0.0) -> Message | Change | None:
        """Return what comes next from any peer; None if nothing does within so many seconds.

        Raises:
            CommError: the store cannot be reached, or another process has taken this one's place.
        """
        try:
            found, link = self._arrived.get(seconds > 0, seconds)
        except queue.Empty:
            return None
        if isinstance(found, CommError):
            self._arrived.put((found, None))  # for whoever asks again
            raise found
        if isinstance(found, Change):
            if link is not None and found.kind == JOINED:
                self._open[found.node] = link
            elif self._open.get(found.node) is link:
                del self._open[found.node]
        return found

    def poll(self) -> Message | None:
        """Return the next message that has arrived, None if there is none now; what has changed is passed over."""
        while isinstance(found := self.take(), Change):
            pass
        return found

    def mark(self, what: str, text: str = "") -> None:
        """Tell all nodes, also those that come later, that something is so: see `marked` and `text_of`."""
        with self._reaching():
            self._store.set(self._key(what), text)

    def marked(self, what: str) -> bool:
        """Return whether a node has called `mark` with this text."""
        with self._reaching():
            return self._store.check([self._key(what)])

    def text_of(self, what: str) -> str:
        """Return the text of the last call of `mark`, of whichever node; empty without one."""
        with self._reaching():
            return self._store.get(self._key(what)).decode() if self._store.check([self._key(what)]) else ""

    def count(self, what: str, more: int) -> int:
        """Add to a number that all nodes share, 0 at first; return the sum."""
        with self._reaching():
            return self._store.add(self._key("count", what), more)

    def stop_requested(self) -> bool:
        """Return whether whoever started the processes has been asked to stop."""
        with self._reaching():
            return self._store.check([STOP])

    def check_place(self) -> None:
        """Raise CommError if another process has taken this one's place, or the store cannot be reached."""
        with self._reaching():
            self._check_place(self._store)

    def _check_place(self, store: TCPStore) -> None:
        if store.add(self._key("entries", self.node), 0) != self.entry:
            raise CommError(
                f"{name_of(self.node)}: another process has taken the place of this one, which was taken for "
                "dead; it ends, and the other goes on"
            )

    def _key(self, *parts: object) -> str:
        return "/".join(map(str, (self._prefix, *parts)))

    def _connect(self) -> TCPStore:
        return process_groups.connect(*self._address, self.patience)

    @contextlib.contextmanager
    def _reaching(self) -> Any:
        try:
            yield
        except (RuntimeError, OSError) as error:
            host, port = self._address
            raise CommError(
                f"{name_of(self.node)}: the store at {host}:{port} cannot be reached: {brief(error)}; the process "
                "that serves it has probably ended"
            ) from error

    def _keep(self, peer: int) -> None:
        """Have a connection to a peer, and after it the next one; runs in a thread."""
        try:
            with self._reaching():
                store = self._connect()
                while not self._closing.is_set():
                    if (number := self._agreed(store, peer)) is not None:
                        self._through(number, peer)
        except CommError as error:
            self._arrived.put((error, None))

    def _agreed(self, store: TCPStore, peer: int) -> int | None:
        """Return the number of the next connection, as both have agreed; None if this node ends before.

        A worker calls the server, or a worker of a higher number one of a lower; the call stands until somebody
        answers it, which one process can.
        """
        calls = peer == SERVER or (self.node != SERVER and self.node > peer)
        number = 0
        if calls:
            number = store.add(self._key("calls"), 1)
            store.set(self._key("call", peer, self.node), str(number))
        key = self._key("call", self.node, peer)
        while not self._closing.wait(POLL):
            if calls and store.check([self._key("answer", number)]):
                return number
            if not calls and store.check([key]):
                number = int(store.get(key))
                if store.add(self._key("answer", number), 1) == 1:
                    return number
            self._check_place(store)
        if calls and store.add(self._key("answer", number), 1) > 1:
            return number  # it has just been answered; else nobody will do so any more
        return None

    def _through(self, number: int, peer: int) -> None:
        """Make a connection and receive until it ends; nothing happens if the peer does not come."""
        rank = int(peer == SERVER or (self.node != SERVER and self.node > peer))
        try:
            pair = Pair(self._connect(), self._key("pair", number), rank, self._own_address, FORM_TIMEOUT)
        except RuntimeError:
            return  # it has died since
        link = self._live[peer] = Link(pair, peer, self.silence)
        if self._closing.is_set():
            link.put(None)
        self._arrived.put((Change(peer, JOINED), link))
        try:
            link.listen(lambda message: self._arrived.put((message, link)))
            change = Change(peer, ENDED)
        except RuntimeError as error:
            change = Change(peer, LEFT, brief(error))
        link.close()
        self._arrived.put((change, link))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        for link in [*self._live.values()]:
            link.put(None) if error is None else link.close()
        deadline = time.monotonic() + max(self.silence, FORM_TIMEOUT) + 1
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))


def name_of(node: int) -> str:
    """Return how messages call a node."""
    return "the server" if node == SERVER else f"worker {node}"
