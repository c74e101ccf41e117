"""A real etcd of three machines on loopback, whose leader can be killed, stopped, cut off and brought back."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

ETCD = shutil.which("etcd")
needs_etcd = pytest.mark.skipif(not ETCD, reason="etcd is not installed (Debian: apt-get install etcd-server)")
SOON = 60.0  # seconds; far beyond what any wait here should take


def free_ports(count: int) -> list[int]:
    """Return ports that are free by now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in sockets]


class Cluster:
    """Three machines; a context manager, at whose end none is left."""

    def __init__(self, folder: Path, machines: int = 3) -> None:
        self.folder, self.machines = folder, machines
        ports = free_ports(2 * machines)
        self.clients, self.peers = ports[:machines], ports[machines:]
        self.processes: list[subprocess.Popen[bytes]] = []

    @property
    def endpoints(self) -> tuple[str, ...]:
        return tuple(f"127.0.0.1:{port}" for port in self.clients)

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
        client, peer = (f"http://127.0.0.1:{ports[number]}" for ports in (self.clients, self.peers))
        members = ",".join(f"m{other}=http://127.0.0.1:{port}" for other, port in enumerate(self.peers))
        command = [ETCD, "--name", f"m{number}", "--data-dir", str(self.folder / f"m{number}")]
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

    def restart(self, number: int) -> None:
        self.processes[number] = self._start(number)

    def kill(self, number: int) -> None:
        self.processes[number].kill()
        self.processes[number].wait()

    def stop(self, number: int) -> None:
        self.processes[number].send_signal(signal.SIGSTOP)

    def proceed(self, number: int) -> None:
        self.processes[number].send_signal(signal.SIGCONT)

    def leader(self) -> int:
        """Return the number of the machine that leads, as a majority says."""
        deadline = time.monotonic() + SOON
        while time.monotonic() < deadline:
            said = [status for port in self.clients if (status := _status(port))]
            led = [status["leader"] for status in said if int(status.get("leader", 0))]
            for number, port in enumerate(self.clients):
                status = _status(port)
                if status and len(led) > self.machines // 2 and {status["header"]["member_id"]} == {*led}:
                    return number
            time.sleep(0.05)
        raise AssertionError("no leader")


def _status(port: int) -> Any:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v3/maintenance/status", b"{}")
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=0.5) as answer:
            return json.loads(answer.read())
    except OSError:
        return None
