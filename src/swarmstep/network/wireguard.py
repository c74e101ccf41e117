"""A private network of the machines of a run: WireGuard between each two, with keys that follow from the secret.

Each machine says in the run's store where its end is, and looks there for those of others. Who knows the secret
knows all keys: the network keeps strangers out, not members apart. Needs root, `ip` of iproute2, `wg` of
wireguard-tools, and WireGuard in the kernel or wireguard-go.
"""

from __future__ import annotations

import base64
import contextlib
import os
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable
from typing import Any

from swarmstep.comm.secure.listener import spell
from swarmstep.comm.secure.tls import derived_key
from swarmstep.comm.store import Store
from swarmstep.console import say
from swarmstep.errors import CommError, UsageError
from swarmstep.network.iproute import run, run_or_skip
from swarmstep.optional_imports import library

PREFIX = "swarm"  # of the interfaces; the pid of the process that made one follows
ENDS = "swarmstep/wireguard"  # in the store: where each machine's end is
POLL = 0.3  # seconds between two looks for new machines
KEPT_OPEN = 25  # seconds after which a firewall hears of a silent connection again
MACHINES = 65_534  # that come in the course of a run, at most


class PrivateNetwork:
    """This machine's end of the private network; a context manager that removes it.

    Args:
        secret: that all machines share.
        number: of this machine in the run, 0 to MACHINES - 1; each that comes has a new one.
        address: of this machine, by which others reach it.
        store: a connection to the run's store that nobody else uses.
        count: returns how many machines have come, with this connection.

    Attributes:
        interface: the name of this machine's end.

    Raises:
        UsageError: what it needs is not there, or its addresses are used by something else.
        CommError: it could not be made.
    """

    def __init__(
        self, secret: bytes, number: int, address: str, store: Store, count: Callable[[Store], int]
    ) -> None:
        self._secret, self._number, self._address = secret, number, address
        self._store, self._count = store, count
        self._range = f"100.{64 + derived_key(secret, b'swarmstep network')[0] % 64}"  # RFC 6598: on few networks
        self._known = {number}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="swarmstep-wireguard", daemon=True)
        self.interface = f"{PREFIX}{os.getpid()}"

    def __enter__(self) -> PrivateNetwork:
        check_means()
        remove_leftovers()
        if used := run("ip", "route", "show", "root", f"{self._range}.0.0/16").strip():
            raise UsageError(
                f"--tunnel: expected no route to {self._range}.0.0/16 on this machine, found "
                f"{used.splitlines()[0]}; if that is another run with this secret, give each its own"
            )
        try:
            self._create()
            self._look()
        except BaseException:
            self._remove()
            raise
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._thread.join(10.0)
        self._remove()

    def _create(self) -> None:
        if subprocess.run(
            ["ip", "link", "add", self.interface, "type", "wireguard"], capture_output=True
        ).returncode:
            if not shutil.which("wireguard-go"):
                raise UsageError(
                    "--tunnel: this kernel has no WireGuard (modprobe wireguard): install wireguard-go, or leave "
                    "--tunnel out and have the machines in a private network of your own (docs/security.md)"
                )
            run("wireguard-go", self.interface)
        self._wg("private-key", "/dev/stdin", given=base64.b64encode(self._key(self._number)))
        run("ip", "address", "add", f"{self._inside(self._number)}/16", "dev", self.interface)
        run("ip", "link", "set", self.interface, "up")
        port = int(run("wg", "show", self.interface, "listen-port"))
        self._store.set(f"{ENDS}/{self._number}", spell((self._address, port)))

    def _look(self) -> None:
        """Let in all machines that have come since."""
        for number in {*range(self._count(self._store))} - self._known:
            key = f"{ENDS}/{number}"
            if self._store.check([key]):
                end = self._store.get(key).decode()
                public = base64.b64encode(_public(self._key(number))).decode()
                peer = ["peer", public, "allowed-ips", f"{self._inside(number)}/32", "endpoint", end]
                self._wg(*peer, "persistent-keepalive", str(KEPT_OPEN))
                self._known.add(number)

    def _watch(self) -> None:
        with contextlib.suppress(RuntimeError):  # the store is gone: the run ends
            while not self._ended.wait(POLL):
                try:
                    self._look()
                except CommError as error:
                    say(str(error))

    def _remove(self) -> None:
        run_or_skip("ip", "link", "delete", self.interface)  # wireguard-go ends with it

    def _key(self, number: int) -> bytes:
        return derived_key(self._secret, b"swarmstep wireguard %d" % number)

    def _inside(self, number: int) -> str:
        """Return a machine's address in the private network."""
        if number >= MACHINES:
            raise CommError(f"--tunnel: expected at most {MACHINES} machines in the course of a run")
        return f"{self._range}.{(number + 1) >> 8}.{(number + 1) & 255}"

    def _wg(self, *what: str, given: bytes = b"") -> None:
        done = subprocess.run(["wg", "set", self.interface, *what], input=given, capture_output=True)
        if done.returncode:
            raise CommError(f"--tunnel: wg: {done.stderr.decode(errors='replace').strip()}")


def check_means() -> None:
    """Raise UsageError where a private network cannot be made."""
    missing = [program for program in ("ip", "wg") if not shutil.which(program)]
    if os.geteuid() or missing:
        found = f"without {' and '.join(missing)}" if missing else "as another user"
        raise UsageError(
            f"--tunnel: expected root, and ip and wg (iproute2, wireguard-tools), found this command {found}; or "
            "leave --tunnel out and have the machines in a private network of your own (docs/security.md)"
        )


def remove_leftovers() -> None:
    """Remove the interfaces of processes that no longer exist."""
    for _, name in socket.if_nameindex():
        if match := re.fullmatch(rf"{PREFIX}(\d+)", name):
            with contextlib.suppress(PermissionError):  # it lives, and belongs to another user
                try:
                    os.kill(int(match[1]), 0)
                except ProcessLookupError:
                    run_or_skip("ip", "link", "delete", name)


def _public(private: bytes) -> bytes:
    x25519: Any = library("cryptography.hazmat.primitives.asymmetric.x25519", "secure", "--tunnel needs")
    return x25519.X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()
