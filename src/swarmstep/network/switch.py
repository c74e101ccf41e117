"""A switch that holds every packet for a while and loses some, for kernels that cannot (netem is often missing).

A program of its own, in the namespace where its ports are: ``python -I switch.py DELAY LOSS SEED PORT...``. It
says ``ready`` on standard output and ends with its standard input, so with the process that started it. Nothing
of swarmstep or torch is imported: it must start at once and stay small.
"""

from __future__ import annotations

import collections
import contextlib
import os
import random
import select
import socket
import sys
import time

# Frames come and go with a virtio-net header: it says which checksums the kernel has left for later, to the card.
HEADER = 10
TO, FROM = slice(HEADER, HEADER + 6), slice(HEADER + 6, HEADER + 12)
LONGEST = HEADER + 18 + 1500
ALL_PROTOCOLS = 3
SOL_PACKET, PACKET_VNET_HDR = 263, 15
SO_SNDBUFFORCE, SO_RCVBUFFORCE = 32, 33
BUFFER = 1 << 24  # bytes that a port may keep each way while this process waits for a processor
AT_ONCE = 64  # frames taken from a port before those that are due go out


class Switch:
    """Knows what is to be sent where and when; the sockets and the clock are the caller's.

    It learns who is behind which port from what comes in there; what is for nobody it knows goes to all others.

    Args:
        ports: how many.
        delay: seconds for which each frame is held.
        loss: probability that a frame is lost.
        seed: of the losses.
    """

    def __init__(self, ports: int, delay: float, loss: float = 0.0, seed: int = 0) -> None:
        self._others = [tuple(other for other in range(ports) if other != port) for port in range(ports)]
        self._delay = delay
        self._loss = loss
        self._random = random.Random(seed).random
        self._known: dict[bytes, tuple[int]] = {}
        self._held: collections.deque[tuple[float, tuple[int, ...], bytes]] = collections.deque()

    def take(self, port: int, frame: bytes, now: float) -> None:
        """Take a frame that has come in at a port, at `now` in seconds, not before that of the last one."""
        self._known[frame[FROM]] = (port,)
        if self._random() >= self._loss:
            self._held.append((now + self._delay, self._known.get(frame[TO], self._others[port]), frame))

    def wait(self, now: float) -> float | None:
        """Return the seconds until the next frame is due; None if there is none."""
        return max(0.0, self._held[0][0] - now) if self._held else None

    def due(self, now: float) -> list[tuple[int, bytes]]:
        """Return what is to be sent now, in the order in which it came: ports and frames."""
        found: list[tuple[int, bytes]] = []
        while self._held and self._held[0][0] <= now:
            _, ports, frame = self._held.popleft()
            found += [(port, frame) for port in ports]
        return found


def serve(switch: Switch, ports: list[socket.socket], end: int) -> None:
    """Carry frames between ports until there is something to read, or an end, at the file descriptor `end`."""
    numbers = {port.fileno(): number for number, port in enumerate(ports)}
    while True:
        # Not epoll: it waits for whole milliseconds.
        readable = select.select([end, *numbers], [], [], switch.wait(time.monotonic()))[0]
        if end in readable:
            return
        for number in (numbers[file] for file in readable):
            now = time.monotonic()
            with contextlib.suppress(BlockingIOError):  # no more
                for _ in range(AT_ONCE):
                    switch.take(number, ports[number].recv(LONGEST), now)
        for number, frame in switch.due(time.monotonic()):
            with contextlib.suppress(OSError):  # the queue of this port is full: a frame is lost, as anywhere
                ports[number].send(frame)


def port(interface: str) -> socket.socket:
    """Return a socket that gets all that comes in at an interface, and sends there."""
    found = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    found.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    found.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
    found.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, BUFFER)
    found.bind((interface, ALL_PROTOCOLS))
    found.setblocking(False)
    return found


def main(delay: str, loss: str, seed: str, *interfaces: str) -> None:
    """Be the switch between these interfaces."""
    # Workers that compute must not make it late. A nice value would count within its own session only (autogroup).
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    switch = Switch(len(interfaces), float(delay), float(loss), int(seed))
    ports = [port(interface) for interface in interfaces]
    print("ready", flush=True)
    serve(switch, ports, sys.stdin.fileno())


if __name__ == "__main__":
    main(*sys.argv[1:])
