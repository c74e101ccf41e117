"""Elastic runs across machines, with real processes; where it takes two machines, in two network namespaces."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rights import needs_network
from swarmstep.comm import rendezvous
from swarmstep.comm.interfaces import interface_towards
from swarmstep.comm.process_groups import LOOPBACK, serve_store
from swarmstep.errors import UsageError
from swarmstep.launch.enter_namespace import inside
from swarmstep.launch.processes import Outcome, Place, run_group
from swarmstep.network.link import Link
from swarmstep.network.namespaces import Network

pytestmark = pytest.mark.usefixtures("forked")

LIMIT = 100.0  # seconds; a hang, not a measurement
ENDLESS = ["--steps", "100000", "--every", "4", "--pace", "0.02", "--silence", "2"]
SECRET = "correct horse battery staple"
SECRETS = ("SWARMSTEP_SECRET", "SWARMSTEP_SECRET_FILE")


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with Network(2, Link(1e9)) as network:
        yield network


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (*SECRETS, "GLOO_SOCKET_IFNAME", "RANK", "WORLD_SIZE", "SWARMSTEP_WORKER"):
        monkeypatch.delenv(name, raising=False)


class Machine:
    """`swarmstep train` on one machine, which writes its errors to a file."""

    def __init__(
        self, network: Network | None, host: int, *options: str, secret: str = SECRET, workload: str = "digits"
    ) -> None:
        command = [sys.executable, "-m", "swarmstep", "train", workload, "--out", f"out-{host}", *options]
        self.errors = Path(f"errors-{host}")
        with self.errors.open("wb") as file:
            self.process = subprocess.Popen(
                network.command(host, command) if network else command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=file,
                env={**os.environ, "SWARMSTEP_SECRET": secret, "TORCH_CPP_LOG_LEVEL": "ERROR"},
            )
        self.folder = Path(f"out-{host}")

    def said(self) -> str:
        return self.errors.read_text()

    def until(self, true: Callable[[], Any]) -> Any:
        """Wait for something that happens while this machine lives."""
        deadline = time.monotonic() + LIMIT
        while not (found := true()):
            assert time.monotonic() < deadline, (self.said(), "it did not come to that")
            assert self.process.poll() is None, self.said()
            time.sleep(0.05)
        return found

    def members(self) -> list[str]:
        """Return who was in the last round that the first worker of this machine took part in."""
        lines = (self.folder / "events" / "0.jsonl").read_text().splitlines()[:-1]  # the last may be half there
        return next((e["members"] for e in map(json.loads, reversed(lines)) if e["kind"] == "round"), [])

    def proxy(self) -> str:
        """Return where it listens."""
        self.until(lambda: "--join" in self.said())
        return self.said().split("--join ")[1].split()[0]

    def end(self, number: int | None = None) -> tuple[int, str]:
        if number is not None:
            self.process.send_signal(number)
        return self.process.wait(LIMIT), self.said()


@pytest.fixture
def start() -> Iterator[Callable[..., Machine]]:
    machines: list[Machine] = []

    def start(*args: Any, **more: Any) -> Machine:
        machines.append(Machine(*args, **more))
        return machines[-1]

    yield start
    for machine in machines:
        machine.process.kill()
        machine.process.wait(LIMIT)


def with_events(machine: Machine) -> Machine:
    machine.until((machine.folder / "events" / "0.jsonl").exists)
    return machine


def descendants(pid: int) -> set[int]:
    table = subprocess.run(["ps", "-eo", "ppid=,pid="], capture_output=True, text=True, check=True).stdout
    children: dict[int, list[int]] = {}
    for line in table.splitlines():
        parent, child = map(int, line.split())
        children.setdefault(parent, []).append(child)
    found, new = set[int](), [pid]
    while new:
        found |= (more := {*children.get(new.pop(), [])})
        new += more
    return found


def children(pid: int) -> list[int]:
    return [*map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]


def listeners(network: Network, host: int, pid: int) -> set[str]:
    """Return where a process listens, with the port only where it is the proxy's."""
    command = network.command(host, ["ss", "-Hltnp"])
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    places = [line.split()[3] for line in lines if f"pid={pid}," in line]
    return {place if place.endswith(":29500") else place.rpartition(":")[0] for place in places}


@needs_network
def test_a_machine_joins_and_another_without_the_secret_does_not(
    network: Network, start: Callable[..., Machine]
) -> None:
    proxy = f"{network.address(0)}:29500"
    first = start(network, 0, *ENDLESS, "--workers", "2", "--elastic", "local", "--listen", proxy)
    assert first.proxy() == proxy
    stranger = start(network, 1, "--join", proxy, secret="a secret of somebody else")
    code, said = stranger.end()
    assert code == 5
    (line,) = said.splitlines()
    assert f"the proxy at {proxy} does not know the secret" in line
    guest = start(network, 1, "--join", proxy, "--workers", "1", "--silence", "2")
    guest.until(lambda: "2.0" in with_events(first).members())
    assert listeners(network, 0, first.process.pid) == {"127.0.0.1", proxy}
    for pid in descendants(first.process.pid):  # gloo
        assert listeners(network, 0, pid) <= {network.address(0)}
    assert f"refused {network.address(1)}" in first.said()
    theirs = descendants(guest.process.pid)
    assert len(theirs) == 3  # the process that forks, the worker, and its witness
    guest.end(signal.SIGKILL)
    first.until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in theirs))
    first.until(lambda: sorted(first.members()) == ["0.0", "1.0"])
    assert first.end(signal.SIGINT)[0] == 130
    assert list(first.folder.glob("checkpoints/*/rank-00001.pt"))


@pytest.mark.slow
def test_a_run_that_stops_on_two_machines_goes_on_where_all_its_files_are(start: Callable[..., Machine]) -> None:
    options = ["--steps", "300", "--every", "4", "--checkpoint-every", "1000", "--elastic", "local"]
    first = start(None, 0, *options, "--pace", "0.2", "--workers", "2", "--listen", "127.0.0.1:0")
    guest = start(None, 1, "--join", first.proxy(), "--workers", "1", "--pace", "0.2")
    guest.until(lambda: "2.0" in with_events(first).members())
    assert first.end(signal.SIGINT)[0] == 130
    code, said = guest.end()
    assert code == 130
    assert said.startswith("swarmstep: the run was stopped after a round; resume it on its first machine, with")
    assert not (guest.folder / "config.json").exists()
    shutil.copytree(guest.folder / "checkpoints", first.folder / "checkpoints", dirs_exist_ok=True)
    assert len(list(first.folder.glob("checkpoints/*/*.pt"))) == 3
    command = [sys.executable, "-m", "swarmstep", "train", "--resume", str(first.folder), "--workers", "3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 0, done.stderr
    assert (first.folder / "model.safetensors").exists()


@pytest.mark.slow
def test_a_machine_leaves_and_the_first_one_dies(start: Callable[..., Machine]) -> None:
    first = start(None, 0, *ENDLESS, "--workers", "1", "--elastic", "local", "--listen", "127.0.0.1:0")
    proxy = first.proxy()
    other = start(None, 1, "--join", proxy, "--lr", "0.5")
    assert other.end() == (2, "swarmstep: --lr 0.5: the run to join has 0.02; leave the option out\n")
    leaves = start(None, 2, "--join", proxy, "--workers", "1")
    leaves.until(lambda: "1.0" in with_events(first).members())
    code, said = leaves.end(signal.SIGINT)
    assert code == 130
    assert said == "swarmstep: left the run on request; it goes on elsewhere\n"
    first.until(lambda: first.members() == ["0.0"])
    stays = start(None, 3, "--join", proxy, "--workers", "1")
    stays.until(lambda: "2.0" in first.members())
    first.end(signal.SIGKILL)
    code, said = stays.end()
    assert code == 5
    last = said.splitlines()[-1]
    assert last.startswith(f"swarmstep: the run at {proxy}: the process that started it has ended, or is out of")


@pytest.mark.slow
def test_all_machines_see_the_run_to_its_end(start: Callable[..., Machine]) -> None:
    options = ["--steps", "100", "--every", "4", "--elastic", "local", "--pace", "0.3"]
    first = start(None, 0, *options, "--workers", "2", "--listen", "127.0.0.1:0")
    guest = start(None, 1, "--join", first.proxy(), "--workers", "1")
    guest.until(lambda: "2.0" in with_events(first).members())
    assert first.end()[0] == 0
    assert guest.end() == (0, f"swarmstep: the run at {first.proxy()} is over\n")
    assert (first.folder / "model.safetensors").exists()


ASGRAD = ("--strategy", "asgrad", "--backend", "gloo", "--workers", "3", "--here", "1", "--pace", "0.01")


@needs_network
@pytest.mark.slow
def test_workers_of_an_asynchronous_run_come_from_another_machine(
    network: Network, start: Callable[..., Machine]
) -> None:
    """One that does not know the secret is refused; the two that do are killed once, and come back."""
    where = f"{network.address(0)}:29500"
    first = start(network, 0, *ASGRAD, "--steps", "600", "--listen", where)
    assert first.proxy() == where
    code, said = start(network, 1, "--join", where, "--workers", "2", secret=f"not {SECRET}").end()
    assert (code, "does not know the secret of this worker" in said) == (5, True)
    guest = start(network, 1, "--join", where, "--workers", "2", "--pace", "0.01")
    rows = first.folder / "metrics.jsonl"
    first.until(lambda: rows.exists() and rows.read_text().count('"look"') > 1)
    assert listeners(network, 0, first.process.pid) == {"127.0.0.1", where}
    for pid in descendants(first.process.pid):  # gloo
        assert listeners(network, 0, pid) <= {network.address(0)}
    theirs = [pid for server in children(guest.process.pid) for pid in children(server)]
    assert len(theirs) == 2
    os.kill(theirs[0], signal.SIGKILL)
    guest.until(lambda: "is lost" in guest.said())
    assert first.end()[0] == 0
    assert guest.end()[0] == 0
    assert guest.said().endswith(f"swarmstep: the run at {where} is over\n")
    found = json.loads((first.folder / "summary.json").read_text())
    assert found["steps_taken"] == 600
    assert all(row["steps"] > 0 for row in found["by_worker"])
    assert sum(row["dropped"] for row in found["by_worker"]) >= 1
    assert not (guest.folder / "summary.json").exists()


@needs_network
def test_the_interface_towards_another_machine(network: Network) -> None:
    for host in (network.address(0), network.address(1)):
        assert inside(network.namespace(0), lambda host=host: interface_towards(host)) == "eth0"
    with pytest.raises(UsageError, match=r"^192\.0\.2\.1: Network is unreachable; expected an address"):
        inside(network.namespace(0), lambda: interface_towards("192.0.2.1"))
    subprocess.run(network.command(1, ["ip", "address", "add", "10.9.0.1/24", "dev", "eth0"]), check=True)
    with pytest.raises(UsageError, match=r"has the address 10\.9\.0\.1: set GLOO_SOCKET_IFNAME"):
        inside(network.namespace(1), lambda: interface_towards("10.9.0.2"))


@needs_network
@pytest.mark.parametrize(("given", "taken"), [(None, "eth0"), ("lo", "lo")])
def test_gloo_takes_the_interface_towards_the_meeting_place(
    given: str | None, taken: str, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"MASTER_ADDR": network.address(0), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    if given:
        monkeypatch.setenv("GLOO_SOCKET_IFNAME", given)
    met = inside(network.namespace(1), lambda: rendezvous._meeting_place(SECRET.encode()))
    assert (met, os.environ.pop("GLOO_SOCKET_IFNAME")) == (network.address(0), taken)


def test_workers_on_one_machine_stay_on_loopback_whatever_is_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nowhere0")
    few = ["train", "digits", "--backend", "gloo", "--workers", "2", "--steps", "4", "--no-files"]
    assert run_group(few, 2, interrupts=[]) == Outcome(0, "")


def test_a_group_of_two_secrets_does_not_begin() -> None:
    differing = Place(lambda rank, command: ["env", f"SWARMSTEP_SECRET={SECRET} {rank}", *command])
    few = ["train", "digits", "--workers", "2", "--steps", "4", "--no-files"]
    code, said, _ = run_group(few, 2, differing, interrupts=[])
    assert code == 5
    assert said.startswith("rank 0: rank 1 did not prove to know the secret")


MEMBER = """
import sys
from swarmstep.comm.store import TcpAddress
from swarmstep.elastic.membership import Membership
from swarmstep.errors import CommError

port, name, secret = sys.argv[1:]
where = TcpAddress("127.0.0.1", int(port))
membership = Membership(where, name, start=2, silence=1.0, patience=4.0, secret=secret.encode())
try:
    print(membership.join().size)
except CommError as error:
    print(error)
membership.leave()
"""


def test_a_member_that_does_not_know_the_secret_takes_part_in_no_group() -> None:
    store, port = serve_store()
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": LOOPBACK, "TORCH_CPP_LOG_LEVEL": "ERROR"}
    members = [
        subprocess.Popen(
            [sys.executable, "-c", MEMBER, str(port), name, secret],
            text=True,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for name, secret in (("a", SECRET), ("b", f"not {SECRET}"))
    ]
    said = [member.communicate(timeout=LIMIT) for member in members]
    del store
    assert all("no group was formed within 4 s" in out for out, _ in said)
    assert all("a group was given up: rank" in err and "did not prove to know" in err for _, err in said)
