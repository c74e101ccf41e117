"""A proxy in front of a store: only those who know the secret connect, and nothing can be altered on the way.

torch's TCPStore trusts whoever connects. So it listens on loopback, and a `Proxy` listens on another interface:
what it passes on comes from a worker that has proved to know the secret, over TLS 1.3. docs/security.md says what
that keeps out and what not.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import sys
from collections.abc import Callable

from swarmstep.comm.secure.listener import PENDING, TIMEOUT, Listener, closing, keep_alive, relay, spell
from swarmstep.comm.secure.tls import Streams, accept, contexts
from swarmstep.errors import CommError


class Proxy(Listener):
    """Passes authenticated connections on to a store on this machine's loopback interface, until `close`.

    Args:
        store_port: of the store.
        secret: at least 16 bytes.
        address: (host, port) of this machine to listen on; port 0: any free one, which is then `port`.
        report: called, from another thread, with one line about who was refused and why (default: writes it to
            standard error).

    Attributes:
        refused: how many connections did not authenticate, or were altered on the way.

    Raises:
        UsageError: the secret is too short, or the address is in use or not of this machine, or the extra `secure`
            is not installed.
    """

    def __init__(
        self,
        store_port: int,
        secret: bytes,
        address: tuple[str, int] = ("127.0.0.1", 0),
        report: Callable[[str], None] | None = None,
    ) -> None:
        self._store_port = store_port
        self._context = contexts(secret).door
        self._report = report or _print
        self._pending: dict[socket.socket, None] = {}  # the oldest first
        self.refused = 0
        super().__init__(address)

    async def _handle(self, connection: socket.socket) -> None:
        peer = _name_of(connection)
        try:
            keep_alive(connection)
            worker = await self._authenticate(connection)
            async with closing(worker[1]):
                store = await asyncio.open_connection("127.0.0.1", self._store_port)
                async with closing(store[1]):
                    await relay(worker, store)
        except CommError as error:
            self._refuse(peer, str(error))
        except ssl.SSLError:
            self._refuse(peer, "sent what is not authentic: altered on the way, repeated or out of order")
        except OSError:  # one of the two connections was lost: both are closed now
            pass

    async def _authenticate(self, connection: socket.socket) -> Streams:
        self._pending[connection] = None
        if len(self._pending) > PENDING:
            oldest = next(iter(self._pending))
            del self._pending[oldest]
            with contextlib.suppress(OSError):  # it has left by itself
                oldest.shutdown(socket.SHUT_RDWR)
        try:
            return await asyncio.wait_for(accept(connection, self._context), TIMEOUT)
        except asyncio.TimeoutError:
            raise CommError(f"did not authenticate within {TIMEOUT:g} s") from None
        except OSError:
            raise CommError("disconnected, or was dropped for newer peers, before it authenticated") from None
        finally:
            self._pending.pop(connection, None)

    def _refuse(self, who: str, why: str) -> None:
        """Count, and report the 1st, 2nd, 4th, 8th ... refusal: nobody can flood the output by connecting."""
        self.refused += 1
        if self.refused.bit_count() == 1:
            where = spell((self.host, self.port))
            self._report(f"the proxy at {where} refused {who}, which {why} (no. {self.refused})")


def _name_of(connection: socket.socket) -> str:
    try:
        return connection.getpeername()[0]
    except OSError:  # it has left already
        return "a peer"


def _print(line: str) -> None:
    with contextlib.suppress(OSError):  # standard error is closed
        print(f"swarmstep: {line}", file=sys.stderr, flush=True)
