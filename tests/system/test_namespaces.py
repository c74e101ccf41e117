"""Networks of namespaces: made, limited, counted, and removed whatever happens. Needs root; skipped without."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rights import needs_network
from swarmstep.errors import CommError
from swarmstep.launch.enter_namespace import FOLDER, inside
from swarmstep.launch.processes import run_group
from swarmstep.launch.stopping import noting_interrupts
from swarmstep.network.leftovers import PREFIX
from swarmstep.network.link import Link, parse
from swarmstep.network.namespaces import Network

pytestmark = pytest.mark.usefixtures("forked")

SOON = 60.0  # seconds; a hang, not a measurement
LINK = Link(1e8)
FAR = Link(1e8, delay=0.02)


def spaces(pid: int | None = None) -> list[str]:
    return sorted(path.name for path in FOLDER.glob(f"{PREFIX}{os.getpid() if pid is None else pid}-*"))


@needs_network
def test_a_network_comes_and_goes() -> None:
    with Network(2, LINK) as network:
        assert len(spaces()) == 3
        here = subprocess.run(network.command(1, ["ip", "-br", "address"]), capture_output=True, text=True)
        assert network.address(1) in here.stdout
        shaped = subprocess.run(network.command(0, ["tc", "qdisc"]), capture_output=True, text=True).stdout
        assert "rate 100Mbit burst 128Kb" in shaped
    assert spaces() == []


@needs_network
def test_the_burst_of_a_slow_link_is_small_and_the_queue_of_a_long_one_is_large() -> None:
    for link, name, expected in ((Link(1e7), "burst", 13_107), (Link(1e9, 0.01), "limit", 2_500_000)):
        with Network(1, link) as network:
            shaped = subprocess.run(network.command(0, ["tc", "-r", "qdisc"]), capture_output=True, text=True)
        (number,) = re.findall(rf"tbf .* {name} (\d+)b ", shaped.stdout)
        assert int(number) == pytest.approx(expected, rel=1e-3)  # tc counts in ticks


@needs_network
def test_two_networks_stand_side_by_side() -> None:
    with Network(1, LINK) as one, Network(1, LINK) as other:
        assert one.namespace(0) != other.namespace(0)
        assert len(spaces()) == 4
    assert spaces() == []


@needs_network
def test_nothing_is_left_after_an_exception_not_even_a_process() -> None:
    left: list[subprocess.Popen[bytes]] = []

    def fail() -> None:
        with Network(2, LINK) as network:
            left.append(subprocess.Popen(network.command(0, ["sleep", "1000"])))
            wait_until(lambda: not os.readlink(f"/proc/{left[0].pid}/exe").endswith("ip"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert spaces() == []
    assert left[0].wait(SOON) == -signal.SIGKILL


@needs_network
def test_nothing_is_left_of_a_network_that_could_not_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tc").write_text("#!/bin/sh\necho 'no tbf in this kernel' >&2\nexit 2\n")
    (tmp_path / "tc").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with (
        pytest.raises(CommError, match=r"^network: `tc .* tbf .*` failed: no tbf in this kernel$"),
        Network(1, LINK),
    ):
        pass
    assert spaces() == []


@needs_network
def test_nothing_is_left_of_a_network_whose_switch_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(CommError, match=r"^network: the switch could not be started: .*/nowhere/python"):
        Network(1, FAR).__enter__()
    assert spaces() == []


COUNTERS = "from swarmstep.microbench.place import interface_counters; print(*interface_counters())"


def datagrams(network: Network, rank: int) -> socket.socket:
    """Return a socket in a worker's namespace."""
    made = inside(network.namespace(rank), lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    made.bind((network.address(rank), 9))
    made.settimeout(SOON)
    return made


@needs_network
@pytest.mark.parametrize("link", [pytest.param(LINK, marks=pytest.mark.slow), FAR])
def test_counters_count_packets_with_their_headers(link: Link) -> None:
    with Network(2, link) as network, datagrams(network, 0) as out, datagrams(network, 1) as into:
        for number in range(50):
            out.sendto(bytes([number]) * 1000, (network.address(1), 9))
        assert [into.recv(2000) for _ in range(50)] == [bytes([number]) * 1000 for number in range(50)]
        command = network.command(
            0, [sys.executable, "-E", "-c", COUNTERS]
        )  # a flag: not forked, it sees another /sys
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    packets, sent = map(int, printed.split())
    assert 50 <= packets <= 55  # besides: who has this address?
    whole = 50 * (14 + 20 + 8 + 1000)
    assert whole <= sent <= whole + 1000


@needs_network
def test_a_delay_is_that_of_each_way() -> None:
    with Network(2, FAR) as network:
        here, there = network.address(0), network.address(1)
        with inside(network.namespace(1), lambda: socket.create_server((there, 5000))) as server:
            out = inside(network.namespace(0), lambda: socket.create_connection((there, 5000), SOON))
            into, (peer, _) = server.accept()
        assert peer == here
        with out, into:
            for _ in range(5):
                started = time.perf_counter()
                out.send(b"?")
                into.send(into.recv(1))
                assert out.recv(1) == b"?"
                assert time.perf_counter() - started >= 2 * FAR.delay


@needs_network
def test_as_many_packets_are_lost_as_the_link_says() -> None:
    count, loss = 4000, 0.2
    with Network(2, Link(1e8, loss=loss)) as network, datagrams(network, 0) as out, datagrams(network, 1) as into:
        there = (network.address(1), 9)
        into.settimeout(0.1)
        while True:  # until both know each other's hardware addresses: that question may be lost, too
            out.sendto(b"?", there)
            try:
                into.recv(1)
                break
            except TimeoutError:
                pass
        into.settimeout(SOON)
        came = 0
        for start in range(0, count, 100):
            for number in range(start, start + 100):
                out.sendto(number.to_bytes(2, "big"), there)
            for _ in range(60):
                out.sendto(b"end %4d" % start, there)
            while (received := into.recv(8)) != b"end %4d" % start:
                came += len(received) == 2
    assert abs(came - count * (1 - loss)) < 6 * (count * loss * (1 - loss)) ** 0.5


def wait_until(condition: Any) -> None:
    deadline = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def dead() -> int:
    """The pid of a process that is no more."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


@needs_network
def test_what_a_dead_process_left_is_removed_and_nobody_elses(dead: int) -> None:
    left, alive = f"{PREFIX}{dead}-0-1", f"{PREFIX}{os.getppid()}-7-1"
    for name in (left, alive):
        subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        orphan = subprocess.Popen(["ip", "netns", "exec", left, "sleep", "1000"])
        wait_until(lambda: not os.readlink(f"/proc/{orphan.pid}/exe").endswith("ip"))
        with Network(1, LINK):
            assert spaces(dead) == []
            assert (FOLDER / alive).exists()
        assert orphan.wait(SOON) == -signal.SIGKILL
    finally:
        subprocess.run(["ip", "netns", "delete", alive], check=True)


HOLD = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
from swarmstep.network.link import parse
from swarmstep.network.namespaces import Network
with Network(2, parse(sys.argv[1])):
    print("made", flush=True)
    time.sleep(1000)
"""


@pytest.fixture(params=["100mbit", "100mbit,20ms,1%"])
def holder(request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[str]]:
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen([sys.executable, "-c", HOLD, request.param], **pipes) as process:
        assert process.stdout
        assert process.stdout.readline() == "made\n"
        yield process
        process.kill()


def inhabitants(names: list[str]) -> list[str]:
    """Return the processes that live in these namespaces."""
    commands = [["ip", "netns", "pids", name] for name in names]
    printed = [subprocess.run(command, capture_output=True, text=True).stdout for command in commands]
    return " ".join(printed).split()


@needs_network
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, -signal.SIGINT)])
def test_nothing_is_left_after_a_signal(holder: subprocess.Popen[str], number: int, code: int) -> None:
    assert len(spaces(holder.pid)) == 3
    living = inhabitants(spaces(holder.pid))
    holder.send_signal(number)
    assert holder.wait(SOON) == code
    assert spaces(holder.pid) == []
    assert not [pid for pid in living if Path(f"/proc/{pid}").exists()]


@needs_network
def test_the_next_network_removes_one_whose_process_was_killed(holder: subprocess.Popen[str]) -> None:
    holder.kill()
    holder.wait(SOON)
    left = spaces(holder.pid)
    assert len(left) == 3
    wait_until(lambda: not inhabitants(left))  # a switch of its own ends by itself
    with Network(1, LINK):
        assert spaces(holder.pid) == []


@needs_network
def test_a_group_trains_between_namespaces(tmp_path: Path) -> None:
    arguments = [
        "train",
        "digits",
        "--backend",
        "gloo",
        "--steps",
        "20",
        "--every",
        "10",
        "--strategy",
        "local-sgd",
    ]
    with Network(2, parse("5mbit,2ms,1%")) as network, noting_interrupts() as interrupts:
        outcome = run_group(
            [*arguments, "--out", str(tmp_path / "run")], 2, network.place(), interrupts=interrupts
        )
        assert outcome == (0, "", False)
        counter = network.command(1, ["cat", "/sys/class/net/eth0/statistics/tx_bytes"])
        sent = int(subprocess.run(counter, capture_output=True, text=True).stdout)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["workers"], summary["rounds"]) == (2, 2)
    assert sent > summary["bytes_sent_per_worker"]
