"""Workers that are forked: like started ones in all that counts, and none is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import swarmstep.launch.fork_server
from rights import needs_network
from swarmstep.errors import CommError
from swarmstep.launch.fork_server import ForkServer, ProcessSpec
from swarmstep.network.link import Link
from swarmstep.network.namespaces import Network

LIMIT = 60.0  # seconds; a hang, not a measurement

# Writes down what it is, then does what a file says: "exit N" or "fail".
PROGRAM = """
import json, os, signal, sys, time
from pathlib import Path
import torch

me = Path(sys.argv[1])
about = {
    "pid": os.getpid(), "parent": os.getppid(), "session": os.getsid(0), "arguments": sys.argv[1:],
    "environment": dict(os.environ), "threads": len(os.listdir("/proc/self/task")),
    "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())), "net": os.readlink("/proc/self/ns/net"),
    "child": signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL, "dynamo": "torch._dynamo" in sys.modules,
    "sum": float((torch.ones(64, 64) @ torch.ones(64, 64)).sum()),
    "open": sorted(os.readlink(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd") if
                   os.path.lexists(f"/proc/self/fd/{n}")),
}
me.with_suffix(".partial").write_text(json.dumps(about))
os.replace(me.with_suffix(".partial"), me.with_suffix(".json"))
print("out of", me.name, flush=True)
print("errors of", me.name, file=sys.stderr, flush=True)
end = time.monotonic() + 60
while not me.with_suffix(".do").exists() and time.monotonic() < end:
    time.sleep(0.005)
word, *more = me.with_suffix(".do").read_text().split()
if word == "fail":
    raise ValueError("no luck")
import atexit
atexit.register(lambda: me.with_suffix(".left").touch())
sys.exit(int(more[0]))
"""


@pytest.fixture(scope="module")
def fork_server() -> Iterator[ForkServer]:
    with ForkServer(dict(os.environ)) as fork_server:
        yield fork_server


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., ProcessSpec]:
    (tmp_path / "worker.py").write_text(PROGRAM)
    monkeypatch.setattr(
        swarmstep.launch.fork_server, "PRELOADED_MODULES", ()
    )  # of those that a test starts for itself

    def job(name: str, **more: Any) -> ProcessSpec:
        environment = {"PATH": os.environ["PATH"], "MINE": name}
        return ProcessSpec(str(tmp_path / "worker.py"), [str(tmp_path / name), "more"], environment, **more)

    return job


def until(true: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + LIMIT
    while not (found := true()):
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.005)
    return found


def about(folder: Path, name: str) -> dict[str, Any]:
    """Wait until the worker has said what it is."""
    file = folder / f"{name}.json"
    until(file.exists)
    return json.loads(file.read_text())


def do(folder: Path, name: str, what: str) -> None:
    (folder / f"{name}.partial").write_text(what)
    os.replace(folder / f"{name}.partial", folder / f"{name}.do")


def the_end(fork_server: ForkServer) -> tuple[int, int]:
    (ended,) = until(lambda: fork_server.ended(1.0))
    return ended


def test_a_worker_is_like_one_that_was_started(
    fork_server: ForkServer, job: Callable[..., ProcessSpec], tmp_path: Path
) -> None:
    out, err = tmp_path / "out", tmp_path / "err"
    pid = fork_server.start(job("one", stdout=str(out), stderr=str(err)))
    found = about(tmp_path, "one")
    assert found["arguments"] == [str(tmp_path / "one"), "more"]
    assert (found["pid"], found["parent"], found["session"]) == (pid, fork_server.pid, pid)
    assert found["environment"] == {"PATH": os.environ["PATH"], "MINE": "one"}
    assert found["threads"] == 1
    assert found["sum"] == 64.0**3
    assert found["dynamo"]
    assert found["child"]
    assert {signal.SIGINT, signal.SIGTERM} <= set(found["blocked"])
    assert not [name for name in found["open"] if name.startswith(("socket", "pipe"))
                and name not in [os.readlink(f"/proc/self/fd/{n}") for n in (0, 1, 2)]]  # fmt: skip
    do(tmp_path, "one", "exit 7")
    assert the_end(fork_server) == (pid, 7)
    assert (tmp_path / "one.left").exists()  # it went through the interpreter's own end
    assert (out.read_text(), err.read_text()) == ("out of one\n", "errors of one\n")


def test_how_workers_end(fork_server: ForkServer, job: Callable[..., ProcessSpec], tmp_path: Path) -> None:
    pids = {name: fork_server.start(job(name, stderr=str(tmp_path / f"{name}.err"))) for name in ("a", "b", "c")}
    for name in pids:
        about(tmp_path, name)
    fork_server.send_signal(pids["b"], signal.SIGSTOP)
    do(tmp_path, "b", "exit 5")
    do(tmp_path, "a", "fail")
    assert the_end(fork_server) == (pids["a"], 1)
    assert "ValueError: no luck" in (tmp_path / "a.err").read_text()
    fork_server.send_signal(pids["b"], signal.SIGCONT)
    assert the_end(fork_server) == (pids["b"], 5)
    fork_server.send_signal(pids["b"], signal.SIGKILL)  # it is gone: nothing happens
    fork_server.send_signal(pids["c"], signal.SIGKILL)
    assert the_end(fork_server) == (pids["c"], -signal.SIGKILL)


def test_a_program_that_is_a_module(fork_server: ForkServer, tmp_path: Path) -> None:
    out = tmp_path / "out"
    fork_server.start(ProcessSpec("swarmstep", ["--version"], dict(os.environ), str(out), str(tmp_path / "err")))
    assert the_end(fork_server)[1] == 0
    assert out.read_text().startswith("swarmstep ")


def test_ended_waits_no_longer_than_it_may(fork_server: ForkServer) -> None:
    assert fork_server.ended(0.0) == []
    assert fork_server.ended(-1.0) == []


@needs_network
def test_a_worker_in_a_namespace(fork_server: ForkServer, job: Callable[..., ProcessSpec], tmp_path: Path) -> None:
    with Network(1, Link(1e9)) as network:
        fork_server.start(job("inside", namespace=network.namespace(0)))
        inside = os.stat(f"/run/netns/{network.namespace(0)}").st_ino
        assert about(tmp_path, "inside")["net"] == f"net:[{inside}]"
        do(tmp_path, "inside", "exit 0")
        assert the_end(fork_server)[1] == 0
    fork_server.start(job("nowhere", namespace="swarmstep-nowhere", stderr=str(tmp_path / "err")))
    assert the_end(fork_server)[1] == 1
    assert "swarmstep-nowhere" in (tmp_path / "err").read_text()


# Starts one worker and says who is who; then waits to be killed.
OWNER = """
import sys, json, os
from swarmstep.launch import fork_server
from swarmstep.launch.fork_server import ProcessSpec, ForkServer
fork_server.PRELOADED_MODULES = ()
with ForkServer(dict(os.environ)) as fork_server:
    pid = fork_server.start(ProcessSpec(sys.argv[1], [sys.argv[2]], dict(os.environ)))
    print(json.dumps([fork_server.pid, pid]), flush=True)
    while True:
        fork_server.ended(1.0)
"""


def gone(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.mark.usefixtures("forked")
def test_nothing_outlives_its_starter(job: Callable[..., ProcessSpec], tmp_path: Path) -> None:
    work = job("left")
    command = [sys.executable, "-c", OWNER, work.program, work.arguments[0]]
    owner = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert owner.stdout
        server, worker = json.loads(owner.stdout.readline())
        about(tmp_path, "left")
    finally:
        owner.kill()
        owner.communicate()
    until(lambda: gone(worker) and gone(server))


@pytest.mark.usefixtures("forked")
def test_workers_do_not_outlive_the_fork_server(job: Callable[..., ProcessSpec], tmp_path: Path) -> None:
    with ForkServer(dict(os.environ)) as fork_server:
        worker = fork_server.start(job("left"))
        about(tmp_path, "left")
        os.kill(fork_server.pid, signal.SIGKILL)
        with pytest.raises(CommError, match="has ended, and the workers with it"):
            fork_server.ended(LIMIT)
        until(lambda: gone(worker))


@pytest.mark.usefixtures("forked")
def test_none_is_left_at_the_end_of_the_block(job: Callable[..., ProcessSpec], tmp_path: Path) -> None:
    with ForkServer(dict(os.environ)) as fork_server:
        pids = [fork_server.start(job(name)) for name in ("x", "y")]
        about(tmp_path, "x")
        fork_server.send_signal(pids[0], signal.SIGSTOP)
    assert all(gone(pid) for pid in [*pids, fork_server.pid])
    with pytest.raises(CommError, match="has ended, and the workers with it"):
        fork_server.start(job("z"))


def test_a_fork_server_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(CommError, match="has ended"):
        ForkServer(dict(os.environ)).__enter__()
