"""A witness of a process: a small process beside it that tells its peers whether it lives.

A worker that holds the interpreter lock while it computes sends no heartbeats, however alive it is: only what runs
outside of its interpreter can tell it from one that is stopped. See docs/decisions/020-witness.md.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable

ALIVE = b"1"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)  # which are for the process, not for it
# Answers each connection with one byte, as long as its parent is there; torch would take seconds and 200 MB.
PROGRAM = """
import os, select, socket, sys
parent, listener = int(sys.argv[1]), socket.socket(fileno=int(sys.argv[2]))
while os.getppid() == parent:
    if select.select([listener], [], [], 0.5)[0]:
        connection = listener.accept()[0]
        try:
            with open(f"/proc/{parent}/stat", "rb") as file:
                state = file.read().rpartition(b")")[2].split()[0]
        except OSError:
            state = os.popen(f"ps -o state= -p {parent}").read()[:1].encode()
        with connection:
            if os.getppid() == parent and state not in (b"", b"T", b"t", b"Z", b"X"):
                connection.send(b"1")
"""


class Witness:
    """Tells whoever connects whether this process lives; ends with it.

    Args:
        address: of this process, by which its peers reach it.

    Attributes:
        address: as HOST:PORT.

    Raises:
        OSError: it could not be started.
    """

    def __init__(self, address: str) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.create_server((address, 0), family=family) as listener:
            self.address = f"{address}:{listener.getsockname()[1]}"
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", "-c", PROGRAM, str(os.getpid()), str(listener.fileno())],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    pass_fds=[listener.fileno()],
                    start_new_session=True,
                )
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def end(self) -> None:
        """End it: this process has nothing more to do with its peers."""
        self._process.kill()
        self._process.wait()


def vouched(addresses: Iterable[str], seconds: float) -> set[str]:
    """Return the addresses at which a witness says within `seconds` that its process lives."""
    found: set[str] = set()
    deadline = time.monotonic() + seconds
    with contextlib.ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        for address in addresses:
            host, _, port = address.rpartition(":")
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            connection = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
            connection.setblocking(False)
            connection.connect_ex((host, int(port)))
            selector.register(connection, selectors.EVENT_READ, address)
        while selector.get_map() and (left := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                selector.unregister(key.fileobj)
                with contextlib.suppress(OSError):  # nobody listens, or cannot be reached
                    if os.read(key.fd, 1) == ALIVE:
                        found.add(key.data)
    return found
