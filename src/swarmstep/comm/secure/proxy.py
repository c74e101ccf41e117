"""A proxy in front of a store: only those who know the secret connect, and nothing can be altered on the way.

torch's TCPStore trusts whoever connects. So it listens on loopback, and a `Proxy` listens on another interface:
what it passes on comes from a worker that has proved to know the secret, on a `Channel`. Data is authenticated,
but not encrypted; docs/security.md says what follows.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable

from swarmstep.comm.secure.auth import checked_secret
from swarmstep.comm.secure.channel import Channel, accept
from swarmstep.comm.secure.listener import PENDING, TIMEOUT, Listener, closing, keep_alive, relay, spell
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
        UsageError: the secret is too short, or the address is in use or not of this machine.
    """

    def __init__(
        self,
        store_port: int,
        secret: bytes,
        address: tuple[str, int] = ("127.0.0.1", 0),
        report: Callable[[str], None] | None = None,
    ) -> None:
        self._store_port = store_port
        self._secret = checked_secret(secret, "the secret")
        self._report = report or _print
        self._pending: dict[asyncio.StreamWriter, None] = {}  # the oldest first
        self.refused = 0
        super().__init__(address)

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = writer.get_extra_info("peername")
        try:
            async with closing(writer):
                channel = await self._authenticate(reader, writer)
                keep_alive(writer)
                store = await asyncio.open_connection("127.0.0.1", self._store_port)
                async with closing(store[1]):
                    await relay(channel, *store)
        except CommError as error:
            self._refuse(peer, str(error))
        except OSError:  # one of the two connections was lost: both are closed now
            pass

    async def _authenticate(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Channel:
        self._pending[writer] = None
        if len(self._pending) > PENDING:
            oldest = next(iter(self._pending))
            del self._pending[oldest]
            oldest.transport.abort()
        try:
            return await asyncio.wait_for(accept(reader, writer, self._secret), TIMEOUT)
        except asyncio.TimeoutError:
            raise CommError(f"did not authenticate within {TIMEOUT:g} s") from None
        except (OSError, EOFError):
            raise CommError("disconnected, or was dropped for newer peers, before it authenticated") from None
        finally:
            self._pending.pop(writer, None)

    def _refuse(self, peer: tuple[str, int] | None, why: str) -> None:
        """Count, and report the 1st, 2nd, 4th, 8th ... refusal: nobody can flood the output by connecting."""
        self.refused += 1
        if self.refused.bit_count() == 1:
            who = peer[0] if peer else "a peer"
            where = spell((self.host, self.port))
            self._report(f"the proxy at {where} refused {who}, which {why} (no. {self.refused})")


def _print(line: str) -> None:
    with contextlib.suppress(OSError):  # standard error is closed
        print(f"swarmstep: {line}", file=sys.stderr, flush=True)
