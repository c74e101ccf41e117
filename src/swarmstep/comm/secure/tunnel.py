"""A worker's way to a store behind a proxy on another machine."""

from __future__ import annotations

import asyncio
import os

from swarmstep.comm.secure.auth import checked_secret
from swarmstep.comm.secure.channel import Channel, connect
from swarmstep.comm.secure.listener import TIMEOUT, Listener, closing, keep_alive, relay, spell
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
        self._secret = checked_secret(secret, "the secret")
        self._timeout = timeout
        self.error: CommError | None = None
        super().__init__(("127.0.0.1", 0))

    def try_out(self) -> None:
        """Connect and disconnect again; raise CommError if there is no proxy, or one end refuses the other."""
        asyncio.run_coroutine_threadsafe(self._try_out(), self._loop).result(self._timeout + 2 * TIMEOUT)

    async def _try_out(self) -> None:
        _, writer = await self._connect()
        async with closing(writer):
            pass

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with closing(writer):
                channel, outer = await self._connect()
                async with closing(outer):
                    await self._relay(channel, reader, writer)
        except OSError as error:
            where = spell(self._address)
            self.error = CommError(f"the connection through the proxy at {where} is lost: {_why(error)}")
        except CommError as error:
            self.error = error

    async def _relay(self, channel: Channel, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if await relay(channel, reader, writer):
                raise CommError("closed the connection; the host has ended, or its store")
        except CommError as error:
            raise CommError(f"the proxy at {spell(self._address)} {error}") from None

    async def _connect(self) -> tuple[Channel, asyncio.StreamWriter]:
        """Return a channel to the proxy and what closes it; raise CommError after the timeout."""
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

    async def _reach(self, progress: list[str]) -> tuple[Channel, asyncio.StreamWriter]:
        """Connect, as often as it takes, and authenticate; note in `progress` how it goes."""
        while True:
            try:
                reader, writer = await asyncio.open_connection(*self._address)
                break
            except OSError as error:
                progress.append(_why(error))
                await asyncio.sleep(RETRY)
        progress.append("connected, but no greeting")
        try:
            keep_alive(writer)
            return await connect(reader, writer, self._secret), writer
        except BaseException:
            writer.transport.abort()
            raise


def open_tunnel(address: tuple[str, int], secret: bytes, timeout: float = 30.0) -> Tunnel:
    """Return a tunnel to the store behind a proxy, tried out once.

    Args:
        address: of the proxy.
        secret: at least 16 bytes, the proxy's.
        timeout: seconds for each connection to reach the proxy and authenticate.

    Raises:
        CommError: there is no proxy, or it refused the secret, or does not know it itself.
        UsageError: the secret is too short.
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
