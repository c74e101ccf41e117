"""A locked door in front of a store: who knows the secret comes in, and what passes cannot be changed on the way.

torch's TCPStore believes whoever connects. So it listens on loopback, and on other interfaces a `Proxy` does: what
it passes on comes from a worker that has proved to know the secret, on a `Channel`. Nothing is hidden from
those who listen on the wire; docs/security.md says what follows.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable

from swarmstep.comm.secure.auth import checked_secret
from swarmstep.comm.secure.channel import CHUNK, Channel, admit, ask
from swarmstep.errors import CommError, UsageError

ANSWER = 5.0  # seconds that a peer has to prove itself, and that the last bytes have to leave
KNOCKING = 64  # peers that may be at it at once; for one more the oldest is dropped
RETRY = 0.2  # seconds between two attempts to reach a door
# Until a vanished machine is noticed: seconds of silence, seconds between probes, probes; ms without an answer.
KEEPALIVE = {"TCP_KEEPIDLE": 15, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 30_000}


@contextlib.asynccontextmanager
async def _closing(writer: asyncio.StreamWriter) -> AsyncGenerator[None]:
    """Close a connection at the end: after a failure at once, else when what was written has left."""
    try:
        yield
        writer.close()
        with contextlib.suppress(OSError, asyncio.TimeoutError):
            await asyncio.wait_for(writer.wait_closed(), ANSWER)
    finally:
        writer.transport.abort()


async def _pass_on(line: Channel, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """Carry bytes both ways until one of the two connections ends; return whether it was the line."""

    async def out() -> None:
        while data := await reader.read(CHUNK):
            await line.send(data)

    async def back() -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                writer.write(await line.receive())
                await writer.drain()

    ways = [asyncio.ensure_future(out()), asyncio.ensure_future(back())]
    try:
        done, _ = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in done:
            way.result()
        return ways[1] in done
    finally:
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)


def _keep_alive(writer: asyncio.StreamWriter) -> None:
    """Have the kernel notice when the machine at the other end is gone."""
    connection: socket.socket = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE.items():
        if hasattr(socket, name):  # not everywhere
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


class _Listener(ABC):
    """Listens on `listen` and attends to each connection, in a thread of its own.

    Attributes:
        host: where it listens.
        port: where it listens.
    """

    def __init__(self, listen: tuple[str, int]) -> None:
        family = socket.AF_INET6 if ":" in listen[0] else socket.AF_INET
        try:
            listener = socket.create_server(listen, family=family)
        except OSError as error:
            why = f"cannot listen on {_place(listen)}: {error.strerror}"
            raise UsageError(f"{why}; give an address of this machine and a free port (0: any)") from None
        self.host: str
        self.port: int
        self.host, self.port = listener.getsockname()[:2]
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, args=(listener,), name="swarmstep-door", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening and drop all connections."""
        if self._thread.is_alive():
            with contextlib.suppress(RuntimeError):  # closed meanwhile
                self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(2 * ANSWER)

    def _run(self, listener: socket.socket) -> None:
        try:
            self._loop.run_until_complete(self._listen(listener))
        finally:
            self._loop.close()

    async def _listen(self, listener: socket.socket) -> None:
        server = await asyncio.start_server(self._begin, sock=listener, backlog=16 * KNOCKING)
        await self._stop.wait()
        server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)  # the loop closes the sockets in its next turn

    async def _begin(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.CancelledError):  # `close`: asyncio would report it
            await self._attend(reader, writer)

    @abstractmethod
    async def _attend(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Do what is to be done for one connection, and close it."""


class Proxy(_Listener):
    """See `serve`.

    Attributes:
        refused: how many connections did not prove to know the secret, or were changed on the way.
    """

    def __init__(
        self, store_port: int, secret: bytes, listen: tuple[str, int], say: Callable[[str], None] | None = None
    ) -> None:
        self._store_port = store_port
        self._secret = checked_secret(secret, "the secret")
        self._say = say or _say
        self._knocking: dict[asyncio.StreamWriter, None] = {}  # the oldest first
        self.refused = 0
        super().__init__(listen)

    async def _attend(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = writer.get_extra_info("peername")
        try:
            async with _closing(writer):
                line = await self._let_in(reader, writer)
                _keep_alive(writer)
                store = await asyncio.open_connection("127.0.0.1", self._store_port)
                async with _closing(store[1]):
                    await _pass_on(line, *store)
        except CommError as error:
            self._refuse(peer, str(error))
        except OSError:  # one of the two is lost: both are closed now
            pass

    async def _let_in(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Channel:
        self._knocking[writer] = None
        if len(self._knocking) > KNOCKING:
            oldest = next(iter(self._knocking))
            del self._knocking[oldest]
            oldest.transport.abort()
        try:
            return await asyncio.wait_for(admit(reader, writer, self._secret), ANSWER)
        except asyncio.TimeoutError:
            raise CommError(f"it has not proved itself within {ANSWER:g} s") from None
        except (OSError, EOFError):
            raise CommError("it left, or too many others came, before it had proved itself") from None
        finally:
            self._knocking.pop(writer, None)

    def _refuse(self, peer: tuple[str, int] | None, why: str) -> None:
        """Count, and say so the 1st, 2nd, 4th, 8th ... time: nobody fills the output with knocking."""
        self.refused += 1
        if self.refused.bit_count() == 1:
            who = peer[0] if peer else "somebody"
            self._say(f"the door at {_place((self.host, self.port))} refused {who}: {why} (no. {self.refused})")


class Tunnel(_Listener):
    """See `enter`.

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
        """Enter and leave again; raise CommError if the door is not there, or one of the two refuses the other."""
        asyncio.run_coroutine_threadsafe(self._try_out(), self._loop).result(self._timeout + 2 * ANSWER)

    async def _try_out(self) -> None:
        _, writer = await self._knock()
        async with _closing(writer):
            pass

    async def _attend(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        where = _place(self._address)
        try:
            async with _closing(writer):
                line, outer = await self._knock()
                async with _closing(outer):
                    if await _pass_on(line, reader, writer):
                        self.error = CommError(f"the door at {where} hung up; the host has ended, or its store")
        except OSError as error:
            self.error = CommError(f"the way through the door at {where} is lost: {_why(error)}")
        except CommError as error:
            self.error = error

    async def _knock(self) -> tuple[Channel, asyncio.StreamWriter]:
        """Return a line to the door and what closes it; raise CommError after the timeout."""
        where, tried = _place(self._address), ["no answer"]
        try:
            return await asyncio.wait_for(self._enter(tried), self._timeout)
        except asyncio.TimeoutError:
            why = f"no door at {where} within {self._timeout:g} s ({tried[-1]}); is the host running?"
        except (OSError, EOFError):
            why = f"the door at {where} hung up: it is no door, or too many knock at it"
        except CommError as error:
            why = f"the door at {where} {error}"
        raise CommError(why)

    async def _enter(self, tried: list[str]) -> tuple[Channel, asyncio.StreamWriter]:
        """Connect, as often as it takes, and prove oneself; note in `tried` how it goes."""
        while True:
            try:
                reader, writer = await asyncio.open_connection(*self._address)
                break
            except OSError as error:
                tried.append(_why(error))
                await asyncio.sleep(RETRY)
        tried.append("whoever is there says nothing")
        try:
            _keep_alive(writer)
            return await ask(reader, writer, self._secret), writer
        except BaseException:
            writer.transport.abort()
            raise


def serve(
    store_port: int,
    secret: bytes,
    listen: tuple[str, int] = ("127.0.0.1", 0),
    say: Callable[[str], None] | None = None,
) -> Proxy:
    """Open a door to a store on this machine's loopback interface; it is there until `close`.

    Args:
        store_port: of the store.
        secret: at least 16 bytes.
        listen: an address of this machine and a port (0: any that is free; it is then the door's `port`).
        say: is told in one line who was refused and why, from another thread (default: writes to standard error).

    Raises:
        UsageError: the secret is too short, or `listen` is not free or not of this machine.
    """
    return Proxy(store_port, secret, listen, say)


def enter(address: tuple[str, int], secret: bytes, timeout: float = 30.0) -> Tunnel:
    """Enter a door: return a passage whose `host` and `port`, on loopback, lead to the store behind it.

    Every connection to the passage is one through the door, proved anew; if one end is lost, so is the other.

    Args:
        address: of the door.
        secret: at least 16 bytes, those of the door.
        timeout: seconds until a door must have been found and have opened, for each connection.

    Raises:
        CommError: there is no door, or it refused the secret, or does not know it itself.
        UsageError: the secret is too short.
    """
    passage = Tunnel(address, secret, timeout)
    try:
        passage.try_out()
    except BaseException:
        passage.close()
        raise
    return passage


def _why(error: OSError) -> str:
    if error.errno and error.errno > 0:  # asyncio has words of its own, and a name server its numbers
        return os.strerror(error.errno)
    return error.strerror or str(error)


def _say(line: str) -> None:
    with contextlib.suppress(OSError):  # nobody reads it any more
        print(f"swarmstep: {line}", file=sys.stderr, flush=True)


def _place(address: tuple[str, int]) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
