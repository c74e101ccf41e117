"""Storms for real: disks, processes and links."""

from __future__ import annotations

import argparse
import errno
import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from rights import lacks, needs_network
from swarmstep.chaos import disk
from swarmstep.chaos import schedule as schedule_
from swarmstep.chaos.disk import Disk
from swarmstep.chaos.event_log import Log
from swarmstep.chaos.injector import Injector
from swarmstep.chaos.runner import Ground, simulated_losses
from swarmstep.chaos.schedule import ScheduledFault
from swarmstep.cli import chaos
from swarmstep.elastic.supervisor import Supervisor, SupervisorOptions
from swarmstep.errors import CommError, Interrupted, UsageError
from swarmstep.launch.namespace import FOLDER
from swarmstep.network.leftovers import PREFIX
from swarmstep.network.link import Link
from swarmstep.network.namespaces import Network

pytestmark = pytest.mark.usefixtures("forked")

LIMIT = 60.0  # seconds; a hang, not a measurement


@pytest.mark.skipif(bool(lacks(disk.check_rights)), reason=lacks(disk.check_rights))
def test_a_disk_is_full_and_has_room_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "SIZE", 1 << 22)
    folder = tmp_path / "checkpoints"
    with Disk(folder) as there:
        (folder / "before").write_bytes(bytes(100_000))
        there.fill()
        with pytest.raises(OSError, match="No space") as caught:
            (folder / "more").write_bytes(bytes(5000))
        assert caught.value.errno == errno.ENOSPC
        there.free()
        (folder / "more").write_bytes(bytes(100_000))
    assert list(folder.iterdir()) == []
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UsageError, match="cannot be mounted: mount: No such file"):
        Disk(folder).__enter__()


# Mounts a file system, says so, and waits to be killed.
MOUNTS = """
import sys, time
from pathlib import Path
from swarmstep.chaos.disk import Disk
with Disk(Path(sys.argv[1])):
    print("ready", flush=True)
    time.sleep(60)
"""


def mounted(folder: Path) -> bool:
    return str(folder).replace(" ", "\\040") in [line.split()[1] for line in disk.MOUNTS.read_text().splitlines()]


@pytest.mark.skipif(bool(lacks(disk.check_rights)), reason=lacks(disk.check_rights))
def test_what_a_killed_process_leaves_mounted_is_removed(tmp_path: Path) -> None:
    killed, living = tmp_path / "kil led", tmp_path / "living"
    process = subprocess.Popen([sys.executable, "-c", MOUNTS, str(killed)], stdout=subprocess.PIPE, text=True)
    with Disk(living):
        try:
            assert process.stdout
            assert process.stdout.readline() == "ready\n"
            disk.remove_leftovers()
            assert mounted(killed)  # it lives
        finally:
            process.kill()
            process.communicate()
        assert mounted(killed)
        disk.remove_leftovers()
        assert not mounted(killed)
        assert mounted(living)


WAITS = "import time\nend = time.monotonic() + 60\nwhile time.monotonic() < end: time.sleep(0.01)\n"


class Weather:
    """Real processes that only wait, a storm over them, and the words that a group would write."""

    def __init__(
        self, folder: Path, supervisor: Supervisor, faults: Sequence[ScheduledFault], **means: Any
    ) -> None:
        (folder / "events").mkdir()
        self.folder, self.supervisor, self.log = folder, supervisor, Log(folder)
        self.storm = Injector(faults, supervisor, self.log, **means)
        self.until(lambda: len(supervisor.living) == supervisor.workers)
        self.epoch = 0

    def until(self, true: Any) -> None:
        deadline = time.monotonic() + LIMIT
        while not true():
            assert time.monotonic() < deadline
            self.supervisor.attend(0.02)

    def group(self) -> None:
        """Let all present workers be the group of the next epoch."""
        self.epoch += 1
        members = [*self.supervisor.living.values()]
        row = {"kind": "joined", "time": time.time(), "worker": members[0], "epoch": self.epoch, "round": 7,
               "step": 3, "members": members, "newcomer": False, "seconds": 0.0, "print": 0.0}  # fmt: skip
        with (self.folder / "events" / "0.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")

    def state(self, slot: int) -> str:
        """Return T for a process that is stopped, as the kernel says."""
        text = Path(f"/proc/{self.supervisor.pids[slot]}/stat").read_text()
        return text.rpartition(")")[2].split()[0]

    def stands(self, slot: int, still: bool) -> bool:
        self.until(lambda: (self.state(slot) == "T") is still)
        return True

    def strikes(self) -> list[tuple[str, int | None, str | None]]:
        return [(row["what"], row["slot"], row["worker"]) for row in self.log.rows if row["kind"] == "strike"]


@pytest.fixture
def weather(tmp_path: Path, forked: None) -> Iterator[Any]:
    (tmp_path / "waits.py").write_text(WAITS)
    with ExitStack() as stack:

        def weather(workers: int, *faults: ScheduledFault, **means: Any) -> Weather:
            manner = SupervisorOptions(program=str(tmp_path / "waits.py"))
            supervisor = stack.enter_context(Supervisor([], workers, tmp_path, None, manner))
            return Weather(tmp_path, supervisor, faults, **means)

        yield weather


def test_a_storm_strikes_real_processes(weather: Any) -> None:
    faults = [ScheduledFault(1.0, "kill", 1, 0.0), ScheduledFault(2.0, "stop", 1, 4.0),
              ScheduledFault(3.0, "kill", 2, 0.0),
              ScheduledFault(4.0, "slow", 3, 5.0), ScheduledFault(9.5, "kill", 0, 0.0)]  # fmt: skip
    there: Weather = weather(4, *faults)
    storm, supervisor = there.storm, there.supervisor
    storm.tick(1.5)
    assert there.strikes() == []  # nobody has joined a group yet: it waits
    assert [row["kind"] for row in there.log.rows] == ["postponed"]
    there.group()
    storm.tick(1.6)
    assert there.strikes() == [("kill", 1, "1.0")]
    assert storm.round == 7
    there.until(lambda: supervisor.living.get(1) == "1.1")
    assert sorted(storm.healthy) == [0, 2, 3]  # 1.1 is no member yet
    storm.tick(2.0)
    assert there.strikes()[1:] == [("stop", 2, "2.0")]  # the next one
    assert there.stands(2, True)
    storm.tick(3.0)
    assert len(there.strikes()) == 2  # two would not be left
    there.group()
    storm.tick(3.1)
    assert there.strikes()[2:] == [("kill", 3, "3.0")]  # 2 is under a fault
    there.until(lambda: supervisor.living.get(3) == "3.1")
    there.group()
    storm.tick(4.0)
    assert there.strikes()[3:] == [("slow", 3, "3.1")]
    assert there.stands(3, True)
    storm.tick(4.1)
    assert there.stands(3, True)  # for the rest of the pulse
    storm.tick(4.2)
    assert there.stands(3, False)
    assert there.stands(2, True)
    storm.tick(4.4)
    assert there.stands(3, True)
    storm.tick(6.0)
    assert there.stands(2, False)  # over, 4 s after it began
    storm.tick(9.0)
    assert there.stands(3, False)
    assert sorted(storm.healthy) == [0, 1, 2, 3]
    storm.end()
    assert [row["fault"] for row in there.log.rows if row["kind"] == "given up"] == [4]
    assert [row["fault"] for row in there.log.rows if row["kind"] == "over"] == [0, 2, 1, 3]
    assert storm.struck == 4


def test_the_end_of_a_storm_undoes_all(weather: Any) -> None:
    there: Weather = weather(3, ScheduledFault(0.0, "stop", 0, 9.0), ScheduledFault(0.0, "slow", 1, 9.0))
    there.group()
    there.storm.tick(0.0)
    assert there.stands(0, True)
    assert there.stands(1, True)
    there.storm.end()
    assert there.stands(0, False)
    assert there.stands(1, False)


def test_a_fault_is_not_passed_on_to_a_successor(weather: Any) -> None:
    there: Weather = weather(3, ScheduledFault(0.0, "slow", 0, 9.0))
    there.group()
    there.storm.tick(0.0)
    there.supervisor.send_signal("0.0", signal.SIGKILL)
    there.until(lambda: there.supervisor.living.get(0) == "0.1")
    there.storm.tick(0.2)
    there.storm.tick(0.4)
    assert there.stands(0, False)


class FullDisk:
    def __init__(self) -> None:
        self.calls: list[str] = []

    def fill(self) -> None:
        self.calls.append("fill")

    def free(self) -> None:
        self.calls.append("free")


def test_one_disk_is_filled_once_at_a_time(weather: Any) -> None:
    full = FullDisk()
    there: Weather = weather(
        3, ScheduledFault(0.0, "disk", None, 2.0), ScheduledFault(1.0, "disk", None, 2.0), disk=full
    )
    for now, calls in ((0.0, 1), (1.0, 1), (1.9, 1), (2.0, 3), (3.9, 3), (4.0, 4)):
        there.storm.tick(now)
        assert len(full.calls) == calls
    assert full.calls == ["fill", "free", "fill", "free"]


@needs_network
def test_a_link_is_cut_and_mended(weather: Any) -> None:
    with Network(3, Link(1e9)) as network:
        there: Weather = weather(3, ScheduledFault(0.0, "cut", 1, 2.0), network=network)
        there.group()

        def reached(rank: int) -> bool:
            asks = f"import socket; socket.create_connection(('{network.store_host}', 9), 0.5)"
            command = network.command(rank, [sys.executable, "-S", "-c", asks])
            return "refused" in subprocess.run(command, capture_output=True, text=True).stderr

        assert reached(1)
        there.storm.tick(0.0)
        assert reached(0)
        assert not reached(1)
        there.storm.tick(2.0)
        assert reached(1)


def command_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    chaos.add_options(parser)
    return parser


def options(*given: str) -> argparse.Namespace:
    return command_parser().parse_args(["digits", *given])


def test_fault_free_runs_give_their_losses(tmp_path: Path) -> None:
    said: list[str] = []
    ground = Ground(2, None, [], said.append)
    train = ["train", "digits", "--workers", "2", "--steps", "8"]
    first, second = simulated_losses(train, [1, 2], tmp_path, ground)
    assert first == json.loads((tmp_path / "fault-free-1" / "summary.json").read_text())["test_loss"]
    assert first != second
    assert len(said) == 2
    with pytest.raises(CommError, match=r"fault-free-5 ended with code 2: swarmstep: .*nowhere"):
        simulated_losses(["train", "nowhere"], [5], tmp_path, ground)
    ground.interrupts.append(2)
    with pytest.raises(Interrupted):
        simulated_losses(train, [3], tmp_path, ground)


def test_a_short_storm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All of it for real: 3 workers, of which one is killed, one stands still and one is slow, in 15 s."""
    for module in (chaos, schedule_):
        monkeypatch.setattr(module, "QUIET", 7.0)
    monkeypatch.setattr(schedule_, "SECONDS", {"stop": (2.5, 3.0), "slow": (1.0, 1.5)})
    given = ["--workers", "3", "--minutes", "0.25", "--faults-per-hour", "1350", "--kinds", "kill,stop,slow"]
    given += ["--pace", "0.02", "--every", "8", "--baseline-seconds", "0", "--fault-free-runs", "0", "--json"]
    code = chaos.run(options(*given, "--out", str(tmp_path / "storm")))
    out, err = capsys.readouterr()
    summary = json.loads(out.splitlines()[-1])
    assert (code, summary["complaints"]) == (0, []), err
    assert summary["scheduled"] == summary["faults"] == summary["survived"] == 3
    assert (summary["given_up"], summary["unplanned_deaths"], summary["digest"]) == (0, [], True)
    assert {kind: found["faults"] for kind, found in summary["kinds"].items()} == {"kill": 1, "stop": 1, "slow": 1}
    assert (summary["wiped_states"], summary["lost_rounds"]) == (0, 0)
    assert summary["committed_rounds"] > 5
    assert 0 < summary["final_loss"] < math.log(10)
    written = (tmp_path / "storm" / "chaos.json").read_text()
    assert json.loads(written).items() >= summary.items()
    assert str(tmp_path) not in written + out
    assert "15 s with 3 faults, 3 workers" in err


@pytest.mark.slow
@needs_network
@pytest.mark.skipif(bool(lacks(disk.check_rights)), reason=lacks(disk.check_rights))
def test_a_storm_that_is_ended_leaves_nothing_behind(tmp_path: Path) -> None:
    """Not on SIGHUP; and what is left after SIGKILL, the next one removes."""

    def storm(name: str) -> tuple[subprocess.Popen[bytes], list[Path], Path]:
        """Start a storm; return once its workers have begun, with its namespaces and its mount."""
        words = [sys.executable, "-m", "swarmstep", "chaos", "digits", "--workers", "3", "--baseline-seconds", "0"]
        words += ["--kinds", "disk", "--minutes", "1", "--out", str(tmp_path / name)]
        with (tmp_path / f"{name}.errors").open("w") as errors:
            process = subprocess.Popen(words, stdout=errors, stderr=errors, start_new_session=True)
        processes.append(process)
        until(lambda: list((tmp_path / name).glob("storm/events/*.jsonl")))
        spaces = [*FOLDER.glob(f"{PREFIX}{process.pid}-*")]
        assert len(spaces) == 4
        checkpoints = tmp_path / name / "storm" / "checkpoints"
        assert mounted(checkpoints)
        return process, spaces, checkpoints

    def until(true: Any) -> None:
        deadline = time.monotonic() + LIMIT
        while not true():
            assert time.monotonic() < deadline
            time.sleep(0.02)

    processes: list[subprocess.Popen[bytes]] = []
    try:
        first, spaces, checkpoints = storm("first")
        first.kill()
        first.wait()
        assert mounted(checkpoints)
        second, more, others = storm("second")
        assert not mounted(checkpoints)
        assert not any(space.exists() for space in spaces)
        second.send_signal(signal.SIGHUP)
        assert second.wait(LIMIT) == 130
        *_, said = (tmp_path / "second.errors").read_text().splitlines()
        assert said.startswith("swarmstep: stopped on request, before there was a verdict")
        assert not mounted(others)
        assert not any(space.exists() for space in more)
    finally:
        for process in processes:
            process.kill()
            process.wait()
