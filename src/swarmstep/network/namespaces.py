"""A real slow network on one machine: a network namespace for each worker, joined by a switch.

Everything is sent by the kernel's own TCP through queues of the given rate (tbf); nothing is modelled. A link with
delay or loss has a switch that holds packets and loses some (`switch.py`), others have the kernel's.
Needs Linux, root, and `ip` and `tc` of iproute2. The names carry the pid of the process that made them, so two
networks can stand side by side, and what a killed process left is removed by the next one.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Generator
from pathlib import Path
from types import FrameType
from typing import TypeVar

from swarmstep.comm.process_groups import serve_store
from swarmstep.errors import CommError, UsageError
from swarmstep.launch.namespace import FOLDER, inside
from swarmstep.launch.processes import SIGNALS, Place
from swarmstep.network import switch
from swarmstep.network.link import Link

T = TypeVar("T")

INTERFACE = "eth0"  # of every worker, in its own namespace
HUB, UPLINK = "hub", "uplink"  # of the switch: where its own address is, and the port of a HUB that is no bridge
PREFIX = "swarmstep-"
# The same in every kernel, allowed in every namespace, and steady: at 100 Mbit/s the times of a broadcast vary by
# 3 % with it, and by 20 % with bbr, which probes for the rate again and again.
CONTROL = "reno"
BURST, BURST_RATE = 131_072, 1e8  # bytes that may pass at once, in proportion to the rate up to BURST_RATE
FRAME = 1514
QUEUE = 1 << 20  # bytes that wait at least for their turn before packets are dropped
WINDOW = 1 << 25  # bytes of TCP's buffers at least
_serial = itertools.count()


class Network:
    """`workers` hosts on one switch; a context manager, which removes everything at its end.

    Each worker sends and receives at most the link's rate. Packets are Ethernet's (1514 bytes), without the large
    segments that the kernel hands to fast cards, so that each is shaped, counted and lost for itself. Inside the
    context SIGTERM ends the program by SystemExit, unless it has a handler.

    Args:
        workers: how many, up to 200.
        link: between each worker and the switch; what it says of delay and loss holds from one to another.
        seed: of the losses.
    """

    def __init__(self, workers: int, link: Link, seed: int = 0) -> None:
        if not 1 <= workers <= 200:
            raise UsageError(f"Network: workers must be 1 to 200, found {workers}")
        self.workers = workers
        self.link = link
        self.seed = seed
        self.store_host = "10.0.0.254"  # the switch's own address
        self._secret = secrets.token_hex(32)  # of all groups here: the store is not on loopback
        self._name = f"{PREFIX}{os.getpid()}-{next(_serial)}-"
        self._space = self._name + "switch"
        self._switch: subprocess.Popen[str] | None = None
        self._previous: Callable[[int, FrameType | None], object] | int | None = None

    def __enter__(self) -> Network:
        check_rights()
        remove_leftovers()
        self._previous = _raising_at_sigterm()
        try:
            self._make()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._close()

    def _make(self) -> None:
        own = self.link.delay > 0 or self.link.loss > 0
        _run("ip", "netns", "add", self._space)
        _run("ip", "-n", self._space, "link", "set", "lo", "up")
        kind = ("veth", "peer", "name", UPLINK) if own else ("bridge",)
        _run("ip", "-n", self._space, "link", "add", HUB, "type", *kind)
        _run("ip", "-n", self._space, "address", "add", f"{self.store_host}/24", "dev", HUB)
        for device in (HUB, UPLINK) if own else (HUB,):
            _raise(self._space, device, is_port=device == UPLINK)
        for rank in range(self.workers):
            self._make_worker(rank, bridged=not own)
        if own:
            self._start_switch()

    def _make_worker(self, rank: int, bridged: bool) -> None:
        name, port = self.namespace(rank), f"port{rank}"
        _run("ip", "netns", "add", name)
        _run("ip", "-n", name, "link", "set", "lo", "up")
        veth = ("type", "veth", "peer", "name", INTERFACE, "netns", name)
        _run("ip", "-n", self._space, "link", "add", port, *veth)
        if bridged:
            _run("ip", "-n", self._space, "link", "set", port, "master", HUB)
        for space, device in ((name, INTERFACE), (self._space, port)):
            _raise(space, device, is_port=device == port)
            _run("tc", "-n", space, "qdisc", "add", "dev", device, "root", "tbf", *self._shape())
        _run("ip", "-n", name, "address", "add", f"{self.address(rank)}/24", "dev", INTERFACE)
        inside(name, self._set_tcp)

    def _shape(self) -> list[str]:
        """Return the rate as tbf's options. A burst of a fixed size would be a second of a slow link."""
        burst = max(2 * FRAME, BURST * min(1.0, self.link.rate / BURST_RATE))
        queue = max(QUEUE, self._under_way())
        return ["rate", f"{self.link.rate:.0f}bit", "burst", f"{burst:.0f}b", "limit", f"{queue:.0f}b"]

    def _under_way(self) -> float:
        """Return how many bytes are sent before the first of them can be acknowledged."""
        return self.link.rate / 8 * 2 * self.link.delay

    def _set_tcp(self) -> None:
        settings = Path("/proc/sys/net/ipv4")
        (settings / "tcp_congestion_control").write_text(CONTROL)
        window = min(max(WINDOW, 4 * self._under_way()), 2**31 - 1)
        for name, default in (("tcp_rmem", 131_072), ("tcp_wmem", 16_384)):
            (settings / name).write_text(f"4096 {default} {window:.0f}")

    def _start_switch(self) -> None:
        # It ends with its standard input, and so with this process, however that ends.
        options = [str(value) for value in (self.link.delay, self.link.loss, self.seed)]
        ports = [UPLINK, *(f"port{rank}" for rank in range(self.workers))]
        command = ["ip", "netns", "exec", self._space, sys.executable, "-I", switch.__file__, *options, *ports]
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        self._switch = subprocess.Popen(command, text=True, start_new_session=True, **pipes)
        assert self._switch.stdout
        assert self._switch.stderr
        if self._switch.stdout.readline() != "ready\n":
            said = self._switch.stderr.read().strip().split("\n")[-1]
            raise CommError(f"network: the switch could not be started: {said}")

    def _close(self) -> None:
        try:
            with _signals_held():
                remove(self._name)
                if self._switch:
                    self._switch.communicate()
        finally:
            if self._previous is not None:
                signal.signal(signal.SIGTERM, self._previous)
                self._previous = None

    def place(self) -> Place:
        """Return where workers are started so that each is in its namespace; for groups one after another."""
        environment = {
            "MASTER_ADDR": self.store_host,
            "GLOO_SOCKET_IFNAME": INTERFACE,
            "SWARMSTEP_SECRET": self._secret,
        }
        return Place(self.command, environment, lambda: inside(self._space, self._serve), self.namespace)

    def _serve(self) -> tuple[object, int]:
        # torch warns, on the file descriptor, that it finds no name for the address: there is no name server.
        with open(os.devnull, "wb") as nowhere, os.fdopen(os.dup(2), "wb") as kept:
            os.dup2(nowhere.fileno(), 2)
            try:
                return serve_store(self.store_host)
            finally:
                os.dup2(kept.fileno(), 2)

    def cut(self, rank: int) -> None:
        """Take a worker's link down at its own end: nothing comes or goes until `mend`; connections stay open."""
        _run("ip", "-n", self.namespace(rank), "link", "set", INTERFACE, "down")

    def mend(self, rank: int) -> None:
        """Take a worker's link up again."""
        _run("ip", "-n", self.namespace(rank), "link", "set", INTERFACE, "up")

    def namespace(self, rank: int) -> str:
        """Return the name of a worker's namespace."""
        return f"{self._name}{rank}"

    def address(self, rank: int) -> str:
        """Return the address of a worker, which all others and the switch reach."""
        return f"10.0.0.{rank + 1}"

    def command(self, rank: int, arguments: list[str]) -> list[str]:
        """Return the command that runs `arguments` as a worker; its process is that of `arguments`."""
        return ["ip", "netns", "exec", self.namespace(rank), *arguments]


def check_rights() -> None:
    """Raise UsageError with what this machine lacks for a network of its own."""
    lacks = [] if sys.platform.startswith("linux") else ["Linux"]
    lacks += [] if hasattr(os, "geteuid") and os.geteuid() == 0 else ["root"]
    lacks += [name for name in ("ip", "tc") if not shutil.which(name)]
    lacks += [] if lacks or _may_make_networks() else ["the capabilities NET_ADMIN and SYS_ADMIN"]
    if lacks:
        raise UsageError(f"a network of namespaces needs {', '.join(lacks)}, which this process does not have")


def _may_make_networks() -> bool:
    """Return whether this process has NET_ADMIN and SYS_ADMIN, which root in a container often has not."""
    found = re.search(r"^CapEff:\s*([0-9a-f]+)$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return found is None or all(int(found[1], 16) >> bit & 1 for bit in (12, 21))


def remove_leftovers() -> None:
    """Remove the networks of processes that are no more."""
    names = [path.name for path in FOLDER.glob(f"{PREFIX}*")] if FOLDER.is_dir() else []
    for pid in {found[1] for name in names if (found := re.match(rf"{PREFIX}(\d+)-\d+-", name))}:
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            remove(f"{PREFIX}{pid}-")
        except PermissionError:
            pass  # it lives, and is somebody else's


def remove(prefix: str) -> None:
    """Remove all namespaces whose names begin so, with their interfaces and with the processes inside."""
    spaces = [path.name for path in FOLDER.glob(f"{prefix}*")] if FOLDER.is_dir() else []
    for name in spaces:
        for pid in _tried("ip", "netns", "pids", name).split():
            with contextlib.suppress(ProcessLookupError):
                if int(pid) != os.getpid():  # a thread of this process may be at the switch
                    os.kill(int(pid), signal.SIGKILL)
        # A socket that is still open keeps a namespace alive without a name: its interfaces must not stay.
        for device in json.loads(_tried("ip", "-n", name, "-j", "link", "show") or "[]"):
            if device["ifname"] != "lo":
                _tried("ip", "-n", name, "link", "delete", device["ifname"])
    for name in spaces:
        _tried("ip", "netns", "delete", name)


def _raise(space: str, device: str, *, is_port: bool) -> None:
    """Set an interface up.

    A port has no addresses, so it answers no questions for them. gso_max_segs: what ethtool -K gso off tso off
    does, without ethtool. addrgenmode: no IPv6 chatter.
    """
    settings = ["gso_max_segs", "1", "addrgenmode", "none", "arp", "off" if is_port else "on", "up"]
    _run("ip", "-n", space, "link", "set", device, *settings)


def _run(*command: str) -> str:
    """Run a command of iproute2 and return what it says; its error is one line."""
    # An interrupt, from the keyboard or not, must not leave it half done, or running on alone.
    with _signals_held():
        done = subprocess.run(command, capture_output=True, text=True, check=False, start_new_session=True)
    if done.returncode:
        said = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise CommError(f"network: `{' '.join(command)}` failed: {said}")
    return done.stdout


def _tried(*command: str) -> str:
    """Return what a command says; nothing if it fails, as where what it is about is gone already."""
    try:
        return _run(*command)
    except CommError:
        return ""


def _raising_at_sigterm() -> Callable[[int, FrameType | None], object] | int | None:
    """Let SIGTERM end the program in good order; return the handler before (None: nothing was changed)."""
    if threading.current_thread() is not threading.main_thread():
        return None
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        return None
    return signal.signal(signal.SIGTERM, _leave)


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


@contextlib.contextmanager
def _signals_held() -> Generator[None]:
    """Let interrupts wait until the end of this block."""
    if threading.current_thread() is not threading.main_thread():
        yield  # they interrupt the main thread only
        return
    came: list[int] = []
    previous = {number: signal.signal(number, lambda n, _: came.append(n)) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    for number in came:
        signal.raise_signal(number)
