"""Machines whose workers talk through WireGuard: two network namespaces, and what passes between them."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rights import needs_network
from swarmstep.comm.process_groups import serve_store
from swarmstep.errors import UsageError
from swarmstep.launch.enter_namespace import inside
from swarmstep.network import wireguard
from swarmstep.network.link import Link
from swarmstep.network.namespaces import Network
from swarmstep.network.wireguard import PREFIX, PrivateNetwork
from tests.system.test_machines import ENDLESS, LIMIT, SECRET, Machine, clean, listeners, start, with_events

assert all((clean, start))
needs_wireguard = pytest.mark.skipif(
    not (shutil.which("wg") and shutil.which("wireguard-go")),
    reason="wg and wireguard-go are not installed (Debian: apt-get install wireguard-tools wireguard-go)",
)
pytestmark = [pytest.mark.usefixtures("forked"), pytest.mark.slow, needs_network, needs_wireguard]
DOOR = 29500
UDP, TCP = 17, 6


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with Network(2, Link(1e9)) as network:
        yield network


class Ear:
    """What passes a machine's card, by protocol and, of TCP, whether one end is the door."""

    def __init__(self, network: Network, host: int) -> None:
        def card() -> socket.socket:
            heard = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))
            heard.bind(("eth0", 0))
            heard.settimeout(0.2)
            return heard

        self.bytes = {"udp": 0, "door": 0, "other": 0}
        self.ended = threading.Event()
        self.card = inside(network.namespace(host), card)
        self.thread = threading.Thread(target=self._listen)

    def _listen(self) -> None:
        while not self.ended.is_set():
            try:
                frame = self.card.recv(1 << 16)
            except TimeoutError:
                continue
            start = 14 + 4 * (frame[14] & 15)
            ports = (
                int.from_bytes(frame[start : start + 2], "big"),
                int.from_bytes(frame[start + 2 : start + 4], "big"),
            )
            kind = {UDP: "udp", TCP: "door" if DOOR in ports else "other"}.get(frame[23], "other")
            self.bytes[kind] += len(frame)

    def __enter__(self) -> Ear:
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.ended.set()
        self.thread.join()
        self.card.close()


def interfaces(network: Network, host: int) -> list[str]:
    names = inside(network.namespace(host), socket.if_nameindex)
    return [name for _, name in names if name.startswith(PREFIX)]


def test_all_that_workers_send_is_encrypted_and_nothing_is_left(
    network: Network, start: Callable[..., Machine]
) -> None:
    door = f"{network.address(0)}:{DOOR}"
    options = ["--workers", "2", "--elastic", "local", "--listen", door, "--tunnel", "wireguard"]
    with Ear(network, 1) as ear:
        first = start(network, 0, *ENDLESS, *options)
        assert first.proxy() == door
        guest = start(network, 1, "--join", door, "--workers", "1", "--silence", "2")
        guest.until(lambda: "2.0" in with_events(first).members())
        (inner,) = interfaces(network, 0)
        assert inner == f"{PREFIX}{first.process.pid}"
        places = listeners(network, 0, first.process.pid)
        assert places == {"127.0.0.1", door}
        before = ear.bytes["udp"]
        first.until(lambda: ear.bytes["udp"] > before + 1_000_000)
        assert interfaces(network, 1) == [f"{PREFIX}{guest.process.pid}"]
        guest.end(signal.SIGKILL)
        first.until(lambda: sorted(first.members()) == ["0.0", "1.0"])
        shutil.rmtree(guest.folder)
        again = start(network, 1, "--join", door, "--workers", "1", "--silence", "2")
        again.until(lambda: "3.0" in first.members())
        assert interfaces(network, 1) == [f"{PREFIX}{again.process.pid}"]  # that of the killed one is gone
        assert again.end(signal.SIGINT)[0] == 130
        assert interfaces(network, 1) == []
    assert first.end(signal.SIGINT)[0] == 130
    assert interfaces(network, 0) == []
    assert ear.bytes["other"] == 0
    assert ear.bytes["door"] > 0


def test_addresses_that_are_used_and_means_that_are_not_there(
    network: Network, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store, _ = serve_store()

    def make() -> Any:
        return PrivateNetwork(SECRET.encode(), 0, network.address(0), store, lambda _: 1)

    def twice() -> None:
        with make() as one:
            assert one.interface in [name for _, name in socket.if_nameindex()]
            with pytest.raises(UsageError, match=r"--tunnel: expected no route to 100\..*give each its own"):
                make().__enter__()

    inside(network.namespace(0), twice)
    assert interfaces(network, 0) == []
    (tmp_path / "ip").symlink_to(shutil.which("ip") or "")
    (tmp_path / "wg").symlink_to(shutil.which("wg") or "")
    monkeypatch.setenv("PATH", str(tmp_path))
    if subprocess.run(["ip", "link", "add", "probe", "type", "wireguard"], capture_output=True).returncode:
        with pytest.raises(UsageError, match=r"--tunnel: this kernel has no WireGuard .* install wireguard-go"):
            inside(network.namespace(0), lambda: make().__enter__())
        assert interfaces(network, 0) == []
    (tmp_path / "wg").unlink()
    with pytest.raises(UsageError, match=r"found this command without wg"):
        wireguard.check_means()
    assert os.geteuid() == 0


def test_a_stranger_and_one_with_an_old_secret_reach_nobody(network: Network) -> None:
    """They know the address of the other end, and take a number that a machine has."""
    store, _ = serve_store()
    ends = [f"{wireguard.ENDS}/{number}" for number in range(2)]

    def machine(number: int, secret: str) -> Any:
        made = PrivateNetwork(secret.encode(), number, network.address(number), store, lambda _: 2)
        return made, made._inside(0), made._inside(1)

    def reaches(secret: str) -> bool:
        """Whether machine 1 with this secret gets a packet through to machine 0."""
        for end in ends:
            store.delete_key(end)
        first, here, _ = machine(0, SECRET)
        second, _, there = machine(1, secret)
        second._range = first._range  # where the other one has its addresses is no secret
        inside(network.namespace(0), first.__enter__)
        try:
            server = inside(network.namespace(0), lambda: socket.create_server((here, 5000)))
            second.interface += "b"
            inside(network.namespace(1), second.__enter__)
            try:
                assert there.startswith("100.")
                limit = LIMIT if secret == SECRET else 3.0
                with server:
                    inside(network.namespace(1), lambda: socket.create_connection((here, 5000), limit).close())
                return True
            except OSError:
                return False
            finally:
                inside(network.namespace(1), lambda: second.__exit__())
        finally:
            inside(network.namespace(0), lambda: first.__exit__())

    assert not reaches("an old secret, which was replaced")
    assert reaches(SECRET)
