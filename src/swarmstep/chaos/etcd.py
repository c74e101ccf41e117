"""An etcd of three machines for a run with faults, whose leader can be killed and comes back."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from swarmstep.errors import CommError, UsageError
from swarmstep.network.namespaces import Network

T = TypeVar("T")

MACHINES = 3
CLIENT, PEER = 2379, 2380  # ports
PRIORITY = -10  # of its processes, a nice value
START_LIMIT = 60.0  # seconds until a majority agrees on a leader


class Cluster:
    """Three processes of etcd; a context manager, at whose end none is left, nor what they stored.

    Args:
        network: in which they are its last three hosts (None: on loopback).
    """

    def __init__(self, network: Network | None) -> None:
        self._network = network
        if network:
            first = network.workers - MACHINES
            self._hosts = [(network.address(first + number), CLIENT, PEER) for number in range(MACHINES)]
        else:
            ports = _free_ports(2 * MACHINES)
            self._hosts = [("127.0.0.1", ports[2 * n], ports[2 * n + 1]) for n in range(MACHINES)]
        self._processes = list[subprocess.Popen[bytes]]()

    def address(self, run: str) -> str:
        """Return what --store says for a run of this name."""
        return f"etcd://{','.join(f'{host}:{client}' for host, client, _ in self._hosts)}/{run}"

    def call(self, function: Callable[[], T]) -> T:
        """Call a function where the store can be reached."""
        return self._network.inside(function) if self._network else function()

    def __enter__(self) -> Cluster:
        check_rights()
        with contextlib.ExitStack() as stack:
            memory = "/dev/shm" if Path("/dev/shm").is_dir() else None  # no disk delays what etcd writes
            self._folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="swarmstep-", dir=memory)))
            stack.callback(self._end)
            for number in range(MACHINES):
                self._processes.append(self._start(number))
            deadline = time.monotonic() + START_LIMIT
            while self.leader() is None:
                if time.monotonic() > deadline:
                    raise CommError(f"etcd: no leader within {START_LIMIT:g} s: {self._last_line()}")
                time.sleep(0.1)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def _end(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()

    def _start(self, number: int) -> subprocess.Popen[bytes]:
        host, client, peer = self._hosts[number]
        data = self._folder / f"m{number}"
        members = ",".join(f"m{n}=http://{h}:{p}" for n, (h, _, p) in enumerate(self._hosts))
        options = {
            "name": f"m{number}",
            "data-dir": data,
            "listen-client-urls": f"http://{host}:{client}",
            "advertise-client-urls": f"http://{host}:{client}",
            "listen-peer-urls": f"http://{host}:{peer}",
            "initial-advertise-peer-urls": f"http://{host}:{peer}",
            "initial-cluster": members,
            "initial-cluster-state": "existing" if data.exists() else "new",
            "heartbeat-interval": 50,  # milliseconds; the network is near
            "election-timeout": 500,
            "auto-compaction-mode": "periodic",
            "auto-compaction-retention": "1m",
            "log-level": "error",
        }
        command = ["etcd", *(word for name, value in options.items() for word in (f"--{name}", str(value)))]
        if self._network:
            rank = self._network.workers - MACHINES + number
            command = self._network.command(rank, command)
        with (self._folder / f"m{number}.log").open("ab") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        with contextlib.suppress(OSError):  # a machine of its own would not wait for the workers' processors
            os.setpriority(os.PRIO_PROCESS, process.pid, PRIORITY)
        return process

    def _last_line(self) -> str:
        lines = [(self._folder / f"m{number}.log").read_text().strip() for number in range(MACHINES)]
        return lines[0].rpartition("\n")[2][:300]

    def leader(self) -> int | None:
        """Return the number of the machine that leads, as a majority says; None if there is none now."""
        said = self.call(lambda: [_status(f"{host}:{client}") for host, client, _ in self._hosts])
        for number, status in enumerate(said):
            votes = [other for other in said if other and status and other["leader"] == status["id"]]
            if len(votes) > MACHINES // 2:
                return number
        return None

    def kill(self, number: int) -> None:
        """Kill a machine."""
        self._processes[number].kill()
        self._processes[number].wait()

    def restart(self, number: int) -> None:
        """Let a killed machine come back, with what it has on disk."""
        self._processes[number] = self._start(number)


def check_rights() -> None:
    """Raise UsageError if there is no etcd."""
    if not shutil.which("etcd"):
        raise UsageError("--store etcd: etcd is not installed (Debian: apt-get install etcd-server)")


def _status(place: str) -> dict[str, Any] | None:
    """Return {"id", "leader"} of a machine; None if it does not answer."""
    request = urllib.request.Request(f"http://{place}/v3/maintenance/status", b"{}")
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=0.5) as answer:
            said = json.loads(answer.read())
            return {"id": said["header"]["member_id"], "leader": said.get("leader", "0")}
    except (OSError, ValueError, KeyError):
        return None


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in sockets]
