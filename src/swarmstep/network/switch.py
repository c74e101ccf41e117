"""A switch that delays every packet and drops some, for kernels without netem.

Runs as a program of its own in the namespace of its ports: ``python -I switch.py DELAY LOSS SEED PORT...``. It
prints ``ready`` on standard output and exits when its standard input ends, and so with the process that started
it. A line ``PORT DELAY LOSS`` there makes a port worse than the others. It imports neither swarmstep nor torch, to
start at once and stay small.
"""

from __future__ import annotations

import contextlib
import heapq
import os
import random
import select
import socket
import sys
import time

# Frames carry a virtio-net header, which says which checksums the kernel has left to the network card.
HEADER = 10
DESTINATION, SOURCE = slice(HEADER, HEADER + 6), slice(HEADER + 6, HEADER + 12)
MAX_FRAME = HEADER + 18 + 1500
ALL_PROTOCOLS = 3
SOL_PACKET, PACKET_VNET_HDR = 263, 15
SO_SNDBUFFORCE, SO_RCVBUFFORCE = 32, 33
BUFFER = 1 << 24  # bytes that a port buffers in each direction while this process waits for a CPU
BATCH = 64  # frames received from a port before those that are due are sent


class Switch:
    """Decides which frame is sent where and when; the caller owns the sockets and the clock.

    It learns from the source address of each frame which host is behind which port; frames to unknown addresses go
    to all other ports.

    Args:
        ports: number of ports.
        delay: seconds for which each frame is held.
        loss: probability that a frame is dropped.
        seed: of the losses.
    """

    def __init__(self, ports: int, delay: float, loss: float = 0.0, seed: int = 0) -> None:
        self._others = [tuple(other for other in range(ports) if other != port) for port in range(ports)]
        self._delay = delay
        self._loss = loss
        self._random = random.Random(seed).random
        self._known: dict[bytes, tuple[int]] = {}
        self._worse: dict[int, tuple[float, float]] = {}  # port -> delay towards it, loss in both directions
        self._held: list[tuple[float, int, tuple[int, ...], bytes]] = []  # a heap, by time and order of arrival
        self._received = 0

    def impair(self, port: int, delay: float, loss: float) -> None:
        """Let frames to a port take so much longer, and those to and from it be lost this often, too."""
        self._worse[port] = delay, loss

    def receive(self, port: int, frame: bytes, now: float) -> None:
        """Take in a frame from a port at the time `now` in seconds, which never decreases."""
        self._known[frame[SOURCE]] = (port,)
        ports = self._known.get(frame[DESTINATION], self._others[port])
        loss, delay = self._loss, self._delay
        if self._worse:
            own, there = (self._worse.get(number, (0.0, 0.0)) for number in (port, ports[0]))
            loss, delay = 1.0 - (1.0 - loss) * (1.0 - own[1]) * (1.0 - there[1]), delay + there[0]
        if self._random() >= loss:
            self._received += 1
            heapq.heappush(self._held, (now + delay, self._received, ports, frame))

    def wait(self, now: float) -> float | None:
        """Return the seconds until the next frame is due; None if there is none."""
        return max(0.0, self._held[0][0] - now) if self._held else None

    def due(self, now: float) -> list[tuple[int, bytes]]:
        """Return the ports and frames to be sent now, in the order of their times, then of arrival."""
        due: list[tuple[int, bytes]] = []
        while self._held and self._held[0][0] <= now:
            _, _, ports, frame = heapq.heappop(self._held)
            due += [(port, frame) for port in ports]
        return due


def serve(switch: Switch, ports: list[socket.socket], end: int) -> None:
    """Carry frames between ports until the file descriptor `end` is readable or closed."""
    numbers = {port.fileno(): number for number, port in enumerate(ports)}
    while True:
        # Not epoll, which only waits for whole milliseconds.
        readable = select.select([end, *numbers], [], [], switch.wait(time.monotonic()))[0]
        if end in readable:
            line = os.read(end, 4096).decode()  # whole lines: they are shorter than a pipe's least buffer
            if not line:
                return
            for port, delay, loss in (words.split() for words in line.splitlines()):
                switch.impair(int(port), float(delay), float(loss))
        for number in (numbers[file] for file in readable):
            now = time.monotonic()
            with contextlib.suppress(BlockingIOError):  # no more frames
                for _ in range(BATCH):
                    switch.receive(number, ports[number].recv(MAX_FRAME), now)
        for number, frame in switch.due(time.monotonic()):
            with contextlib.suppress(OSError):  # the queue of this port is full: the frame is lost
                ports[number].send(frame)


def open_port(interface: str) -> socket.socket:
    """Return a socket that receives all frames of an interface, and sends there."""
    made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    made.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    made.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
    made.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, BUFFER)
    made.bind((interface, ALL_PROTOCOLS))
    made.setblocking(False)
    return made


def main(delay: str, loss: str, seed: str, *interfaces: str) -> None:
    """Run the switch between these interfaces."""
    # Real-time, so that busy workers do not delay it: a nice value counts only within its session (autogroup).
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    switch = Switch(len(interfaces), float(delay), float(loss), int(seed))
    ports = [open_port(interface) for interface in interfaces]
    print("ready", flush=True)
    serve(switch, ports, sys.stdin.fileno())


if __name__ == "__main__":
    main(*sys.argv[1:])
