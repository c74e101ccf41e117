"""A real slow network on one machine: a network namespace for each worker, joined by a switch.

Packets travel through the kernel's own TCP and queues of the given rate (tbf); nothing is modelled. A link without
delay and loss uses the kernel's bridge as switch, others a process that delays and drops packets (`switch.py`).
Needs Linux, root, and `ip` and `tc` of iproute2. Namespaces are named after the pid of the process that made them,
so several networks can exist side by side, and what a killed process left behind is removed by the next one.
"""

from __future__ import annotations

import itertools
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TypeVar

from swarmstep.comm.process_groups import serve_store
from swarmstep.errors import CommError, UsageError
from swarmstep.launch.enter_namespace import inside
from swarmstep.launch.processes import Place
from swarmstep.network import switch
from swarmstep.network.iproute import bring_up, run, signals_deferred
from swarmstep.network.leftovers import PREFIX, remove, remove_leftovers
from swarmstep.network.link import Link

INTERFACE = "eth0"  # of every worker, in its own namespace
HUB, UPLINK = "hub", "uplink"  # of the switch: HUB has its address; UPLINK is the port of a HUB that is no bridge
# Available in every kernel, allowed in every namespace, and steady: at 100 Mbit/s the times of a broadcast vary by
# 3 % with it, and by 20 % with bbr, which keeps probing for the rate.
CONGESTION_CONTROL = "reno"
BURST, BURST_RATE = 131_072, 1e8  # bytes that may pass at once; below BURST_RATE in proportion to the rate
FRAME = 1514  # bytes of an Ethernet frame
MIN_QUEUE = 1 << 20  # bytes that can wait before packets are dropped
MIN_WINDOW = 1 << 25  # bytes of TCP's buffers
_serial = itertools.count()

T = TypeVar("T")
SignalHandler = Callable[[int, FrameType | None], object] | int | None


class Network:
    """`workers` hosts on one switch; a context manager that removes everything on exit.

    Each worker sends and receives at most the link's rate. Packets have the size of Ethernet frames (1514 bytes):
    the large segments that the kernel hands to fast network cards are switched off, so that each packet is shaped,
    counted and lost on its own. Inside the context SIGTERM raises SystemExit, unless the program has a handler.

    Args:
        workers: 1 to 200.
        link: between each worker and the switch; delay and loss apply from one worker to another.
        seed: of the losses.
        switched: whether a process is the switch even where the link has neither delay nor loss, for `impair`.
    """

    def __init__(self, workers: int, link: Link, seed: int = 0, *, switched: bool = False) -> None:
        if not 1 <= workers <= 200:
            raise UsageError(f"Network: workers must be 1 to 200, found {workers}")
        self.workers = workers
        self.link = link
        self.seed = seed
        self.switched = switched or link.delay > 0 or link.loss > 0
        self.store_host = "10.0.0.254"  # the switch's own address
        self._secret = secrets.token_hex(32)  # of all groups here: the store is not on loopback
        self._name = f"{PREFIX}{os.getpid()}-{next(_serial)}-"
        self._switch_namespace = self._name + "switch"
        self._switch: subprocess.Popen[str] | None = None
        self._previous_handler: SignalHandler = None

    def __enter__(self) -> Network:
        check_rights()
        remove_leftovers()
        self._previous_handler = _exit_at_sigterm()
        try:
            self._create()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._remove()

    def _create(self) -> None:
        needs_switch = self.switched
        run("ip", "netns", "add", self._switch_namespace)
        run("ip", "-n", self._switch_namespace, "link", "set", "lo", "up")
        kind = ("veth", "peer", "name", UPLINK) if needs_switch else ("bridge",)
        run("ip", "-n", self._switch_namespace, "link", "add", HUB, "type", *kind)
        run("ip", "-n", self._switch_namespace, "address", "add", f"{self.store_host}/24", "dev", HUB)
        for interface in (HUB, UPLINK) if needs_switch else (HUB,):
            bring_up(self._switch_namespace, interface, is_port=interface == UPLINK)
        for rank in range(self.workers):
            self._create_worker(rank, bridged=not needs_switch)
        if needs_switch:
            self._start_switch()

    def _create_worker(self, rank: int, bridged: bool) -> None:
        name, port = self.namespace(rank), f"port{rank}"
        run("ip", "netns", "add", name)
        run("ip", "-n", name, "link", "set", "lo", "up")
        veth = ("type", "veth", "peer", "name", INTERFACE, "netns", name)
        run("ip", "-n", self._switch_namespace, "link", "add", port, *veth)
        if bridged:
            run("ip", "-n", self._switch_namespace, "link", "set", port, "master", HUB)
        for namespace, interface in ((name, INTERFACE), (self._switch_namespace, port)):
            bring_up(namespace, interface, is_port=interface == port)
            run("tc", "-n", namespace, "qdisc", "add", "dev", interface, "root", "tbf", *self._tbf_options())
        run("ip", "-n", name, "address", "add", f"{self.address(rank)}/24", "dev", INTERFACE)
        inside(name, self._configure_tcp)

    def _tbf_options(self) -> list[str]:
        """Return tbf's options for the rate. A burst of fixed size would be a second's worth on a slow link."""
        burst = max(2 * FRAME, BURST * min(1.0, self.link.rate / BURST_RATE))
        queue = max(MIN_QUEUE, self._bandwidth_delay())
        return ["rate", f"{self.link.rate:.0f}bit", "burst", f"{burst:.0f}b", "limit", f"{queue:.0f}b"]

    def _bandwidth_delay(self) -> float:
        """Return the bytes sent before the first of them can be acknowledged."""
        return self.link.rate / 8 * 2 * self.link.delay

    def _configure_tcp(self) -> None:
        settings = Path("/proc/sys/net/ipv4")
        (settings / "tcp_congestion_control").write_text(CONGESTION_CONTROL)
        window = min(max(MIN_WINDOW, 4 * self._bandwidth_delay()), 2**31 - 1)
        for name, default in (("tcp_rmem", 131_072), ("tcp_wmem", 16_384)):
            (settings / name).write_text(f"4096 {default} {window:.0f}")

    def _start_switch(self) -> None:
        # It exits when its standard input ends, and so with this process, however that ends.
        options = [str(value) for value in (self.link.delay, self.link.loss, self.seed)]
        ports = [UPLINK, *(f"port{rank}" for rank in range(self.workers))]
        python = [sys.executable, "-I", switch.__file__]
        command = ["ip", "netns", "exec", self._switch_namespace, *python, *options, *ports]
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        self._switch = subprocess.Popen(command, text=True, start_new_session=True, **pipes)
        assert self._switch.stdout
        assert self._switch.stderr
        if self._switch.stdout.readline() != "ready\n":
            error = self._switch.stderr.read().strip().split("\n")[-1]
            raise CommError(f"network: the switch could not be started: {error}")

    def _remove(self) -> None:
        try:
            with signals_deferred():
                remove(self._name)
                if self._switch:
                    self._switch.communicate()
        finally:
            if self._previous_handler is not None:
                signal.signal(signal.SIGTERM, self._previous_handler)
                self._previous_handler = None

    def place(self) -> Place:
        """Return a place that starts each worker in its namespace; for any number of groups, one after another."""
        environment = {
            "MASTER_ADDR": self.store_host,
            "GLOO_SOCKET_IFNAME": INTERFACE,
            "SWARMSTEP_SECRET": self._secret,
        }
        return Place(
            self.command, environment, lambda: inside(self._switch_namespace, self._serve_store), self.namespace
        )

    def _serve_store(self) -> tuple[object, int]:
        # torch warns, on the file descriptor, that the address has no name: there is no name server.
        with open(os.devnull, "wb") as devnull, os.fdopen(os.dup(2), "wb") as stderr:
            os.dup2(devnull.fileno(), 2)
            try:
                return serve_store(self.store_host)
            finally:
                os.dup2(stderr.fileno(), 2)

    def cut(self, rank: int) -> None:
        """Take a worker's link down at its own end: nothing passes until `mend`; connections stay open."""
        run("ip", "-n", self.namespace(rank), "link", "set", INTERFACE, "down")

    def mend(self, rank: int) -> None:
        """Bring a worker's link up again."""
        run("ip", "-n", self.namespace(rank), "link", "set", INTERFACE, "up")

    def block(self, rank: int, *, sends: bool) -> None:
        """Drop all that a worker sends, or all that is sent to it, until `unblock`; connections stay open."""
        self._limit_queue(rank, sends, "1b")

    def unblock(self, rank: int, *, sends: bool) -> None:
        """Let what `block` drops pass again."""
        self._limit_queue(rank, sends, self._tbf_options()[-1])

    def _limit_queue(self, rank: int, sends: bool, limit: str) -> None:
        # A queue too short for a packet drops each; no kernel module more is needed.
        interface = INTERFACE if sends else f"port{rank}"
        there = self.namespace(rank) if sends else self._switch_namespace
        options = [*self._tbf_options()[:-1], limit]
        run("tc", "-n", there, "qdisc", "change", "dev", interface, "root", "tbf", *options)

    def impair(self, rank: int, delay: float, loss: float) -> None:
        """Let packets to a worker take so much longer, and those to and from it be lost with this probability.

        Both 0: as before. Only where the network is `switched`.
        """
        assert self._switch
        assert self._switch.stdin
        self._switch.stdin.write(f"{rank + 1} {delay} {loss}\n")
        self._switch.stdin.flush()

    def inside(self, function: Callable[[], T]) -> T:
        """Call a function in a thread of this process that is on the switch, and reaches all workers."""
        return inside(self._switch_namespace, function)

    @property
    def switch_namespace(self) -> str:
        """The name of the switch's namespace."""
        return self._switch_namespace

    def namespace(self, rank: int) -> str:
        """Return the name of a worker's namespace."""
        return f"{self._name}{rank}"

    def address(self, rank: int) -> str:
        """Return the address of a worker, reachable by all workers and the switch."""
        return f"10.0.0.{rank + 1}"

    def command(self, rank: int, arguments: list[str]) -> list[str]:
        """Return the command that runs `arguments` as a worker; the process becomes that of `arguments`."""
        return ["ip", "netns", "exec", self.namespace(rank), *arguments]


def check_rights() -> None:
    """Raise UsageError if this process cannot create networks; the message says what is missing."""
    missing = [] if sys.platform.startswith("linux") else ["Linux"]
    missing += [] if hasattr(os, "geteuid") and os.geteuid() == 0 else ["root"]
    missing += [name for name in ("ip", "tc") if not shutil.which(name)]
    missing += [] if missing or _has_capabilities() else ["the capabilities NET_ADMIN and SYS_ADMIN"]
    if missing:
        raise UsageError(f"a network of namespaces needs {', '.join(missing)}, which this process does not have")


def _has_capabilities() -> bool:
    """Return whether this process has NET_ADMIN and SYS_ADMIN, which root in a container often lacks."""
    match = re.search(r"^CapEff:\s*([0-9a-f]+)$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return match is None or all(int(match[1], 16) >> bit & 1 for bit in (12, 21))


def _exit_at_sigterm() -> SignalHandler:
    """Make SIGTERM raise SystemExit; return the previous handler, or None if nothing was changed."""
    if threading.current_thread() is not threading.main_thread():
        return None
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        return None
    return signal.signal(signal.SIGTERM, _exit)


def _exit(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
