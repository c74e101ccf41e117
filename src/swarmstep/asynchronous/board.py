"""What all nodes of a run see, whoever is there: a store, with marks and counts by name."""

from __future__ import annotations

import contextlib
from collections.abc import Generator

from swarmstep.asynchronous.contract import SERVER
from swarmstep.comm import process_groups
from swarmstep.comm.process_groups import brief
from swarmstep.comm.secure.auth import check_address, is_loopback
from swarmstep.comm.secure.tunnel import Tunnel, open_tunnel
from swarmstep.comm.torch_private import TCPStore
from swarmstep.elastic.keys import STOP
from swarmstep.errors import CommError


class Board:
    """A node's connection to the store of a run.

    Args:
        node: whose.
        address: (host, port) of the store on this machine, or of the `Proxy` before one on another machine.
        run: a name of this run in the store, the same for all nodes.
        patience: seconds to wait for the store, above 0.
        secret: that the proxy is shown (None: there is none, and so no proxy).

    Attributes:
        entry: how many processes have been this node by now, this one included.

    Raises:
        UsageError: an address of another machine, and no secret.
        CommError: the store cannot be reached, or the proxy refuses the secret.
    """

    def __init__(
        self, node: int, address: tuple[str, int], run: str, patience: float, secret: bytes | None
    ) -> None:
        check_address(address[0], secret)
        self.node, self.patience, self.address = node, patience, address
        self._prefix = f"swarmstep/asynchronous/{run}"
        self._reached = address
        self._tunnel: Tunnel | None = None
        if secret is not None and not is_loopback(address[0]):
            self._tunnel = open_tunnel(address, secret, patience)
            self._reached = self._tunnel.host, self._tunnel.port
        with self.reaching():
            self.store = self.connect()
            self.entry = self.store.add(self.key("entries", node), 1)

    def mark(self, what: str, text: str = "") -> None:
        """Tell all nodes, also those that come later, that something is so: see `marked` and `text_of`."""
        with self.reaching():
            self.store.set(self.key(what), text)

    def marked(self, what: str) -> bool:
        """Return whether a node has called `mark` with this text."""
        with self.reaching():
            return self.store.check([self.key(what)])

    def text_of(self, what: str) -> str:
        """Return the text of the last call of `mark`, of whichever node; empty without one."""
        with self.reaching():
            return self.store.get(self.key(what)).decode() if self.store.check([self.key(what)]) else ""

    def count(self, what: str, more: int) -> int:
        """Add to a number that all nodes share, 0 at first; return the sum."""
        with self.reaching():
            return self.store.add(self.key("count", what), more)

    def stop_requested(self) -> bool:
        """Return whether whoever started the processes has been asked to stop."""
        with self.reaching():
            return self.store.check([STOP])

    def check_place(self) -> None:
        """Raise CommError if another process has taken this one's place, or the store cannot be reached."""
        with self.reaching():
            self.check_place_in(self.store)

    def check_place_in(self, store: TCPStore) -> None:
        """The same, through another connection."""
        if store.add(self.key("entries", self.node), 0) != self.entry:
            raise CommError(
                f"{name_of(self.node)}: another process has taken the place of this one, which was taken for "
                "dead; it ends, and the other goes on"
            )

    def key(self, *parts: object) -> str:
        """Return a key of this run."""
        return "/".join(map(str, (self._prefix, *parts)))

    def connect(self) -> TCPStore:
        """Return a connection to the store for one thread."""
        return process_groups.connect(*self._reached, self.patience)

    @contextlib.contextmanager
    def reaching(self) -> Generator[None]:
        """Turn a failure of the store into a CommError."""
        try:
            yield
        except (RuntimeError, OSError) as error:
            host, port = self.address
            raise CommError(
                f"{name_of(self.node)}: the store at {host}:{port} cannot be reached: {brief(error)}; the process "
                "that serves it has probably ended"
            ) from error

    def leave(self) -> None:
        """Close the way to the store."""
        if self._tunnel:
            self._tunnel.close()


def name_of(node: int) -> str:
    """Return how messages call a node."""
    return "the server" if node == SERVER else f"worker {node}"
