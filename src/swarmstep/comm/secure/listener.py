"""What proxy and tunnel have in common: a listening socket with a thread of its own, and relaying."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator

from swarmstep.comm.secure.tls import Streams
from swarmstep.errors import UsageError

CHUNK = 1 << 16  # bytes that are read at once
TIMEOUT = 5.0  # seconds that a peer has to authenticate, and that the last bytes have to leave
PAUSE = 0.05  # seconds until the next try, where no connection could be accepted
PENDING = 64  # peers that may be authenticating at once; for one more the oldest is dropped
# Until a vanished machine is noticed: seconds of silence, seconds between probes, probes; ms without an answer.
KEEPALIVE = {"TCP_KEEPIDLE": 15, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 30_000}


@contextlib.asynccontextmanager
async def closing(writer: asyncio.StreamWriter) -> AsyncGenerator[None]:
    """Close a connection at the end: once everything written has left, or at once after a failure."""
    try:
        yield
        writer.close()
        with contextlib.suppress(OSError, asyncio.TimeoutError):
            await asyncio.wait_for(writer.wait_closed(), TIMEOUT)
    finally:
        writer.transport.abort()


async def relay(outer: Streams, inner: Streams) -> bool:
    """Relay bytes in both directions until one of the connections ends; return whether it was the outer one."""

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(CHUNK):
            writer.write(data)
            await writer.drain()

    directions = [asyncio.ensure_future(copy(outer[0], inner[1])), asyncio.ensure_future(copy(inner[0], outer[1]))]
    try:
        done, _ = await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
        for direction in done:
            direction.result()
        return directions[0] in done
    finally:
        for direction in directions:
            direction.cancel()
        await asyncio.gather(*directions, return_exceptions=True)


def keep_alive(connection: socket.socket) -> None:
    """Have the kernel notice when the machine at the other end is gone."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE.items():
        if hasattr(socket, name):  # not on every system
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


class Listener(ABC):
    """Listens on an address and handles each connection, in a thread of its own.

    Args:
        address: (host, port) of this machine; port 0: any free one.

    Attributes:
        host: where it listens.
        port: where it listens.

    Raises:
        UsageError: it cannot listen there.
    """

    def __init__(self, address: tuple[str, int]) -> None:
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        try:
            listener = socket.create_server(address, family=family, backlog=16 * PENDING)
        except OSError as error:
            why = f"cannot listen on {spell(address)}: {error.strerror}"
            raise UsageError(f"{why}; give an address of this machine and a free port (0: any)") from None
        self.host: str
        self.port: int
        self.host, self.port = listener.getsockname()[:2]
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, args=(listener,), name="swarmstep-proxy", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening and drop all connections."""
        if self._thread.is_alive():
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(2 * TIMEOUT)

    def _run(self, listener: socket.socket) -> None:
        try:
            self._loop.run_until_complete(self._listen(listener))
        finally:
            self._loop.close()

    async def _listen(self, listener: socket.socket) -> None:
        listener.setblocking(False)
        accepting, stopped = (
            asyncio.ensure_future(self._accept(listener)),
            asyncio.ensure_future(self._stop.wait()),
        )
        await asyncio.wait([accepting, stopped], return_when=asyncio.FIRST_COMPLETED)
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        listener.close()
        await asyncio.sleep(0)  # the loop closes the sockets in its next iteration

    async def _accept(self, listener: socket.socket) -> None:
        handlers = set[asyncio.Task[None]]()  # the loop itself holds them weakly
        while True:
            try:
                connection, _ = await self._loop.sock_accept(listener)
            except OSError:  # it is gone already, or there are too many open files
                await asyncio.sleep(PAUSE)
                continue
            handler = asyncio.ensure_future(self._handle(connection))
            handlers.add(handler)
            handler.add_done_callback(handlers.discard)

    @abstractmethod
    async def _handle(self, connection: socket.socket) -> None:
        """Handle one connection, and close it."""


def spell(address: tuple[str, int]) -> str:
    """Return HOST:PORT, or [HOST]:PORT for IPv6."""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
