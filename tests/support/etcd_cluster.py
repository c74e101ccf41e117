"""A real etcd of three machines, whose leader can be killed, stopped, cut off and brought back."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from swarmstep.network.iproute import run, run_or_skip

ETCD = shutil.which("etcd")
needs_etcd = pytest.mark.skipif(not ETCD, reason="etcd is not installed (Debian: apt-get install etcd-server)")
SOON = 60.0  # seconds; far beyond what any wait here should take


def free_ports(count: int) -> list[int]:
    """Return ports that are free by now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in sockets]


class Cluster:
    """Three machines on loopback; a context manager, at whose end none is left."""

    def __init__(self, folder: Path, machines: int = 3) -> None:
        self.folder, self.machines = folder, machines
        self.hosts = ["127.0.0.1"] * machines
        ports = free_ports(2 * machines)
        self.clients, self.peers = ports[:machines], ports[machines:]
        self.processes: list[subprocess.Popen[bytes]] = []

    @property
    def endpoints(self) -> tuple[str, ...]:
        return tuple(f"{host}:{port}" for host, port in zip(self.hosts, self.clients, strict=True))

    def address(self, run: str = "run") -> str:
        return f"etcd://{','.join(self.endpoints)}/{run}"

    def __enter__(self) -> Cluster:
        self.processes = [self._start(number) for number in range(self.machines)]
        self.leader()
        return self

    def __exit__(self, *error: object) -> None:
        for process in self.processes:
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait()

    def _start(self, number: int) -> subprocess.Popen[bytes]:
        assert ETCD
        client, peer = (f"http://{self.hosts[number]}:{ports[number]}" for ports in (self.clients, self.peers))
        places = zip(self.hosts, self.peers, strict=True)
        members = ",".join(f"m{other}=http://{host}:{port}" for other, (host, port) in enumerate(places))
        command = [
            *self._inside(number),
            ETCD,
            "--name",
            f"m{number}",
            "--data-dir",
            str(self.folder / f"m{number}"),
        ]
        command += ["--listen-client-urls", client, "--advertise-client-urls", client]
        command += [
            "--listen-peer-urls",
            peer,
            "--initial-advertise-peer-urls",
            peer,
            "--initial-cluster",
            members,
        ]
        again = "existing" if (self.folder / f"m{number}").exists() else "new"
        command += ["--initial-cluster-state", again, "--log-level", "error"]
        with (self.folder / f"m{number}.log").open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log)

    def _inside(self, number: int) -> list[str]:
        """Return what a command begins with that is to run on a machine."""
        return []

    def restart(self, number: int) -> None:
        self.processes[number] = self._start(number)

    def kill(self, number: int) -> None:
        self.processes[number].kill()
        self.processes[number].wait()

    def stop(self, number: int) -> None:
        self.processes[number].send_signal(signal.SIGSTOP)

    def proceed(self, number: int) -> None:
        self.processes[number].send_signal(signal.SIGCONT)

    def leader(self, *cut_off: int) -> int:
        """Return the number of the machine that leads, as a majority says; some need not be asked."""
        deadline = time.monotonic() + SOON
        while time.monotonic() < deadline:
            asked = [number for number in range(self.machines) if number not in cut_off]
            said = {number: status for number in asked if (status := _status(self.endpoints[number]))}
            led = [status["leader"] for status in said.values() if int(status.get("leader", 0))]
            for number, status in said.items():
                if len(led) > self.machines // 2 and {status["header"]["member_id"]} == {*led}:
                    return number
            time.sleep(0.05)
        raise AssertionError("no leader")


class SeparateCluster(Cluster):
    """Each machine in a network namespace of its own: packets from one to another can be dropped."""

    def __init__(self, folder: Path, machines: int = 3) -> None:
        super().__init__(folder, machines)
        self._name, self._net = f"etcd{os.getpid()}", f"10.213.{os.getpid() % 256}"
        self.hosts = [f"{self._net}.{number + 1}" for number in range(machines)]

    def _inside(self, number: int) -> list[str]:
        return ["ip", "netns", "exec", f"{self._name}-{number}"]

    def __enter__(self) -> Cluster:
        try:
            run("ip", "link", "add", self._name, "type", "bridge")
            run("ip", "address", "add", f"{self._net}.254/24", "dev", self._name)
            run("ip", "link", "set", self._name, "up")
            for number, host in enumerate(self.hosts):
                space, port = f"{self._name}-{number}", f"{self._name}p{number}"
                run("ip", "netns", "add", space)
                run("ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", space)
                run("ip", "link", "set", port, "master", self._name, "up")
                run("ip", "-n", space, "address", "add", f"{host}/24", "dev", "eth0")
                for interface in ("lo", "eth0"):
                    run("ip", "-n", space, "link", "set", interface, "up")
            return super().__enter__()
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        for number in range(self.machines):
            run_or_skip("ip", "netns", "delete", f"{self._name}-{number}")
        run_or_skip("ip", "link", "delete", self._name)

    def drop(self, sender: int, receiver: int) -> None:
        """Drop all packets from one machine to another; clients reach both."""
        run("ip", "-n", f"{self._name}-{sender}", "route", "add", "blackhole", f"{self.hosts[receiver]}/32")

    def mend(self) -> None:
        """Drop no packets any more."""
        for number in range(self.machines):
            run("ip", "-n", f"{self._name}-{number}", "route", "flush", "type", "blackhole")


def _status(place: str) -> Any:
    request = urllib.request.Request(f"http://{place}/v3/maintenance/status", b"{}")
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=0.5) as answer:
            return json.loads(answer.read())
    except OSError:
        return None
