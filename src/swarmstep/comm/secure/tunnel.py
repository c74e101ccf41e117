"""A worker's way to a store behind a proxy on another machine."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl

from swarmstep.comm.secure.listener import TIMEOUT, Listener, closing, keep_alive, relay, spell
from swarmstep.comm.secure.tls import Streams, connect, contexts, dial
from swarmstep.errors import CommError

RETRY = 0.2  # seconds between two attempts to reach a proxy


class Tunnel(Listener):
    """Passes connections to its `host` and `port`, on loopback, on to the store behind a proxy, until `close`.

    Each connection is authenticated anew; if one end is lost, the other is closed. Made by `open_tunnel`.

    Args:
        address: of the proxy.
        secret: at least 16 bytes, the proxy's.
        timeout: seconds for each connection to reach the proxy and authenticate.

    Attributes:
        error: why the last connection failed, or None.
    """

    def __init__(self, address: tuple[str, int], secret: bytes, timeout: float) -> None:
        self._address = address
        self._context = contexts(secret).worker
        self._timeout = timeout
        self.error: CommError | None = None
        super().__init__(("127.0.0.1", 0))

    def try_out(self) -> None:
        """Connect and disconnect again; raise CommError if there is no proxy, or one end refuses the other."""
        asyncio.run_coroutine_threadsafe(self._try_out(), self._loop).result(self._timeout + 2 * TIMEOUT)

    async def _try_out(self) -> None:
        async with closing((await self._connect())[1]):
            pass

    async def _handle(self, connection: socket.socket) -> None:
        where = f"the proxy at {spell(self._address)}"
        inner = await asyncio.open_connection(sock=connection)
        try:
            async with closing(inner[1]):
                outer = await self._connect()
                async with closing(outer[1]):
                    if await relay(outer, inner):
                        self.error = CommError(f"{where} closed the connection; the host has ended, or its store")
        except ssl.SSLError:
            self.error = CommError(f"{where} sent what is not authentic: altered on the way, or out of order")
        except OSError as error:
            self.error = CommError(f"the connection through {where} is lost: {_why(error)}")
        except CommError as error:
            self.error = error

    async def _connect(self) -> Streams:
        """Return a connection to the store behind the proxy; raise CommError after the timeout."""
        where, progress = spell(self._address), ["no answer"]
        try:
            return await asyncio.wait_for(self._reach(progress), self._timeout)
        except asyncio.TimeoutError:
            why = f"no proxy at {where} within {self._timeout:g} s ({progress[-1]}); is the host running?"
        except (OSError, EOFError):
            why = f"the proxy at {where} closed the connection: it is none, or too many peers connect to it"
        except CommError as error:
            why = f"the proxy at {where} {error}"
        raise CommError(why)

    async def _reach(self, progress: list[str]) -> Streams:
        """Connect, as often as it takes, and authenticate; note in `progress` how it goes."""
        while True:
            try:
                connection = await dial(self._address)
                break
            except OSError as error:
                progress.append(_why(error))
                await asyncio.sleep(RETRY)
        progress.append("connected, but no answer")
        keep_alive(connection)
        return await connect(connection, self._context)


def open_tunnel(address: tuple[str, int], secret: bytes, timeout: float = 30.0) -> Tunnel:
    """Return a tunnel to the store behind a proxy, tried out once.

    Args:
        address: of the proxy.
        secret: at least 16 bytes, the proxy's.
        timeout: seconds for each connection to reach the proxy and authenticate.

    Raises:
        CommError: there is no proxy, or it refused the secret, or does not know it itself.
        UsageError: the secret is too short, or the extra `secure` is not installed.
    """
    tunnel = Tunnel(address, secret, timeout)
    try:
        tunnel.try_out()
    except BaseException:
        tunnel.close()
        raise
    return tunnel


def _why(error: OSError) -> str:
    if error.errno and error.errno > 0:  # asyncio words it differently, and name servers have numbers of their own
        return os.strerror(error.errno)
    return error.strerror or str(error)
