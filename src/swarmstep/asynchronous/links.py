"""The connections of a node of real processes: nodes come and go, and each connection stands and falls alone."""

from __future__ import annotations

import os
import queue
import threading
import time
import warnings
from types import TracebackType
from typing import Any, NamedTuple

from typing_extensions import Self

from swarmstep.asynchronous.board import Board, name_of
from swarmstep.asynchronous.contract import SERVER, Message, Method
from swarmstep.asynchronous.link import Link, check_message
from swarmstep.comm.interfaces import own_address
from swarmstep.comm.pair import Pair, prove_to
from swarmstep.comm.process_groups import FORM_TIMEOUT, brief
from swarmstep.comm.secure.auth import secret_of
from swarmstep.comm.store import TcpAddress, store_at
from swarmstep.comm.torch_private import TCPStore
from swarmstep.elastic.keys import candidates_key
from swarmstep.errors import CommError, UsageError

POLL = 0.02  # seconds between two looks at the store, for each peer without a connection
REFUSED = 1.0  # seconds until a peer that did not know the secret may try again
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


class Links(Board):
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
        address: (host, port) of the store on this machine, or of the `Proxy` before one on another machine.
        run: a name of this run in the store, the same for all nodes.
        silence: seconds without a sign of life after which a peer counts as lost, at least 0.1; one that computes
            gives signs, unless it holds the interpreter lock for as long. A message must take less to arrive.
        patience: seconds to wait for the first connection, and for a peer that is lost to come back; above 0.
        secret: at least 16 bytes, that the two of each connection prove to each other to know (None: they do not).

    Attributes:
        entry: how many processes have been this node by now, this one included.

    Raises:
        UsageError: an argument is out of its range, or the address is another machine's and there is no secret.
        CommError: the store cannot be reached, or the proxy refuses the secret.
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
        secret: bytes | None = None,
    ) -> None:
        if node not in method.nodes or silence < 0.1 or patience <= 0:
            raise UsageError(
                f"{method.card.name}: expected one of the nodes {method.nodes}, silence of at least 0.1 s, "
                f"patience above 0; found node {node}, silence {silence}, patience {patience}"
            )
        super().__init__(node, address, run, patience, secret)
        self.silence, self._secret = silence, secret
        others = [other for other in method.nodes if other != node]
        self.peers = [SERVER] if method.has_server and node != SERVER else others
        self._open: dict[int, Link] = {}  # as `take` has told
        self._live: dict[int, Link] = {}
        self._arrived: queue.SimpleQueue[tuple[Message | Change | CommError, Link | None]] = queue.SimpleQueue()
        self._closing = threading.Event()
        with self.reaching():
            self._own_address = own_address(address[0])
        self._threads = [threading.Thread(target=self._keep, args=[p], daemon=True) for p in self.peers]
        for thread in self._threads:
            thread.start()

    @classmethod
    def from_env(
        cls, method: Method[Any], *, node: int | None = None, silence: float = 10.0, patience: float = 60.0
    ) -> Self:
        """Return the links of a process that `swarmstep run --workers N` has started, N being the number of nodes.

        Slot r is the r-th of `method.nodes`: the server's is the last. Who dies is started again in its slot. The
        secret is that of SWARMSTEP_SECRET_FILE or SWARMSTEP_SECRET, if one is set.

        Args:
            method: as in the class.
            node: which one this is, where it does not follow from the slot (None: it does).
            silence: as in the class.
            patience: as in the class.

        Raises:
            UsageError: this process was started by something else, or N is another number.
            CommError: the store cannot be reached.
        """
        nodes, started = len(method.nodes), os.environ.get("SWARMSTEP_WORKERS")
        if (node is None and started != str(nodes)) or any(name not in os.environ for name in VARIABLES):
            raise UsageError(
                f"Links.from_env: expected to be started with swarmstep run --workers {nodes} PROGRAM.py, one for "
                f"each of the nodes {method.nodes}; found SWARMSTEP_WORKERS={started}"
            )
        store, worker = (os.environ[name] for name in VARIABLES)
        address = store_at(store)
        if not isinstance(address, TcpAddress):
            raise UsageError(f"Links.from_env: expected the supervisor's own store, found --store {store}")
        node = method.nodes[int(worker.partition(".")[0])] if node is None else node
        secret = secret_of(os.environ)
        links = cls(method, node, (address.host, address.port), silence=silence, patience=patience, secret=secret)
        with links.reaching():
            links.store.add(candidates_key(0), 0)  # the supervisor asks whether anybody has met the others
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

    def _keep(self, peer: int) -> None:
        """Have a connection to a peer, and after it the next one; runs in a thread."""
        try:
            with self.reaching():
                store = self.connect()
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
            number = store.add(self.key("calls"), 1)
            store.set(self.key("call", peer, self.node), str(number))
        key = self.key("call", self.node, peer)
        while not self._closing.wait(POLL):
            if calls and store.check([self.key("answer", number)]):
                return number
            if not calls and store.check([key]):
                number = int(store.get(key))
                if store.add(self.key("answer", number), 1) == 1:
                    return number
            self.check_place_in(store)
        if calls and store.add(self.key("answer", number), 1) > 1:
            return number  # it has just been answered; else nobody will do so any more
        return None

    def _through(self, number: int, peer: int) -> None:
        """Make a connection and receive until it ends; nothing happens if the peer does not come."""
        rank = int(peer == SERVER or (self.node != SERVER and self.node > peer))
        try:
            pair = Pair(self.connect(), self.key("pair", number), rank, self._own_address, FORM_TIMEOUT)
        except RuntimeError:
            return  # it has died since
        try:
            if self._secret is not None:
                prove_to(pair, rank, self._secret)
        except CommError as error:
            warnings.warn(f"{name_of(self.node)}: {name_of(peer)} {error}", stacklevel=2)
            pair.close()
            self._closing.wait(REFUSED)
            return
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
        self.leave()
