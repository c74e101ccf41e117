"""Storms: their schedule, what they do to processes, and what their logs come to."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
import shlex
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from swarmstep.chaos import command_line, consistency, disk, etcd, memory, recovery, trial, verdict_text
from swarmstep.chaos import schedule as schedule_
from swarmstep.chaos.disk import Disk
from swarmstep.chaos.event_log import FaultLog, InjectedFault, Joined, Landed, Saved, Tail, event, injected_faults
from swarmstep.chaos.growth import SAMPLES
from swarmstep.chaos.injector import Injector
from swarmstep.chaos.means import Means, flip_a_bit
from swarmstep.chaos.run_record import RunRecord
from swarmstep.chaos.runner import RunContext, simulated_losses
from swarmstep.chaos.schedule import IMPOSSIBLE, KINDS, QUIET, SECONDS, TABLE, ScheduledFault, schedule, victim
from swarmstep.chaos.settings import ChaosSettings
from swarmstep.chaos.throughput import live_seconds, throughput, worker_steps
from swarmstep.chaos.verdict import complaints, summarize
from swarmstep.checkpoint.file import content_of, write
from swarmstep.cli import main
from swarmstep.cli.app import load
from swarmstep.cli.options import fields_of
from swarmstep.comm.sim import simulate
from swarmstep.elastic.supervisor import Supervisor, SupervisorOptions
from swarmstep.errors import CommError, Interrupted, UsageError
from swarmstep.launch.enter_namespace import FOLDER
from swarmstep.network.leftovers import PREFIX
from swarmstep.network.link import Link
from swarmstep.network.namespaces import Network, check_rights
from swarmstep.signal import Layout
from swarmstep.strategies import STRATEGIES
from swarmstep.train.worker_events import shared_digest

LIMIT = 60.0  # seconds; a hang, not a measurement


def lacks(check: Any) -> str:
    try:
        check()
        return ""
    except UsageError as error:
        return str(error)


kinds = st.lists(st.sampled_from(KINDS), min_size=1, unique=True)


@given(st.integers(0, 2**40), st.floats(20.5, 3600), st.floats(1, 3600), st.integers(1, 12), kinds)
def test_a_schedule_is_even_exact_and_leaves_the_end_alone(
    seed: int, seconds: float, per_hour: float, workers: int, kinds: list[str]
) -> None:
    faults = schedule(seed, seconds, per_hour, workers, kinds)
    assert faults == schedule(seed, seconds, per_hour, workers, kinds)
    usable = seconds - 20
    assert len(faults) == round(per_hour * usable / 3600)
    for index, fault in enumerate(faults):  # one in each interval
        assert index * usable / len(faults) <= fault.at <= (index + 1) * usable / len(faults)
        shortest, longest = SECONDS.get(fault.kind, (0, 0))
        assert shortest <= fault.seconds <= longest
    counts = Counter(fault.kind for fault in faults)
    assert max(counts.values(), default=0) - min((counts[kind] for kind in kinds), default=0) <= 1
    assert set(counts) <= set(kinds)
    slots = Counter(fault.slot for fault in faults if TABLE[fault.kind].strikes == "worker")
    assert max(slots.values(), default=0) - min(slots[slot] for slot in range(workers)) <= 1
    assert all((fault.slot is None) == (TABLE[fault.kind].strikes != "worker") for fault in faults)


def test_what_the_issue_asks_for() -> None:
    faults = schedule(0, 300.0, 720.0, 8, KINDS)
    assert len(faults) == 56  # 60 in 5 minutes, less those of the quiet end
    assert {fault.kind for fault in faults} == {*KINDS}
    assert {fault.slot for fault in faults} == {None, *range(8)}
    assert faults != schedule(1, 300.0, 720.0, 8, KINDS)
    assert schedule(0, 300.0, 1.0, 8, KINDS) == []
    with pytest.raises(UsageError, match="expected a run of more than 20 s"):
        schedule(0, QUIET, 720.0, 8, KINDS)


def test_who_is_struck_in_place_of_whom() -> None:
    assert victim(2, "kill", {0, 2, 3}, 4) == 2
    assert victim(1, "kill", {0, 2, 3}, 4) == 2
    assert victim(3, "stop", {0, 1, 2}, 4) == 0
    assert victim(3, "cut", {0, 1}, 4) is None  # one would be left
    assert victim(3, "slow", {0, 1}, 4) == 0  # both are
    assert victim(3, "slow", set(), 4) is None


# A log by hand: three workers, a round each second from 10.0 on, 4 steps a round; "2.0" is killed at 12.5,
# noticed at 12.6 and left out of the round at 13.0; "2.1" joins at 13.5.

ALL, TWO, NEW = ("0.0", "1.0", "2.0"), ("0.0", "1.0"), ("0.0", "1.0", "2.1")


def landed(number: int, members: Sequence[str], epoch: int, at: float | None = None, **more: Any) -> list[Landed]:
    at = 9.0 + number if at is None else at
    about = {"epoch": epoch, "round": number, "step": 4 * number, "digest": number / 8, **more}
    return [
        Landed(at + 0.01 * k, name, members=(*members,), averaged=len(members), loss=1.0, **about)
        for k, name in enumerate(members)
    ]


def joined(
    members: Sequence[str], epoch: int, number: int, at: float, new: Sequence[str] = (), **more: Any
) -> list[Joined]:
    about = {"round": number, "step": 4 * number, "seconds": 0.25, "digest": number / 8, **more}
    return [Joined(at, name, epoch, members=(*members,), newcomer=name in new, **about) for name in members]


def story() -> dict[str, list[Any]]:
    """Return the parts of the log, to be changed by tests."""
    return {
        "start": joined(ALL, 0, 0, 9.0, ALL),
        "before": [event for number in (1, 2, 3) for event in landed(number, ALL, 0)],
        "left": joined(TWO, 1, 3, 12.85, step=14),
        "without": landed(4, TWO, 1),
        "back": joined(NEW, 2, 4, 13.5, ["2.1"]),
        "after": [event for number in (5, 6, 7) for event in landed(number, NEW, 2)],
    }


KILL = InjectedFault(12.5, "kill", 2, "2.0", 12.5)
END = {"kind": "ended", "time": 12.52, "slot": 2, "worker": "2.0", "lost": True, "code": -9}


def recorded(parts: Mapping[str, Sequence[Any]], *faults: InjectedFault) -> RunRecord:
    events = sorted((event for part in parts.values() for event in part), key=lambda event: event.time)
    return RunRecord(events, [END], faults or (KILL,), len(faults) or 1)


def test_a_log_where_all_went_well() -> None:
    run = recorded(story())
    calm = RunRecord([*joined(ALL, 0, 0, 9.0, ALL), *(e for n in range(1, 6) for e in landed(n, ALL, 0))], [])
    assert throughput(calm) == pytest.approx(4.0)  # steps a second, of each worker
    summary = summarize(run, calm, 0.52, [0.5, 0.51, 0.49])
    assert summary["scheduled"] == summary["faults"] == summary["survived"] == 1
    assert (summary["given_up"], summary["unplanned_deaths"], summary["digest"]) == (0, [], True)
    assert (summary["wiped_states"], summary["lost_rounds"], summary["committed_rounds"]) == (0, 0, 7)
    assert summary["recover_seconds_median"] == summary["recover_seconds_max"] == pytest.approx(0.5)
    kill = summary["kinds"]["kill"]
    assert kill["noticed"] == {"median": pytest.approx(0.1), "max": pytest.approx(0.1)}
    assert kill["regrouped"]["max"] == 0.25
    assert summary["lost_worker_steps"] == 4  # of 2.0 after round 3, at most
    assert summary["committed_worker_steps"] == 4 * (3 * 5 + 2)
    live = 6 + 6 + (12.5 - 10) + (16 - 13.5)  # 10.0 to 16.0
    assert summary["live_workers"] == pytest.approx(live / 6)
    assert summary["throughput_ratio"] == pytest.approx(68 / live / 4)
    assert summary["participating_workers"] == pytest.approx((6 * 3 + 2) / 7)
    assert summary["averaged_workers"] == summary["participating_workers"]
    assert summary["fault_free_loss"] == pytest.approx(0.5)
    assert summary["fault_free_deviation"] == pytest.approx(statistics.stdev([0.5, 0.51, 0.49]))
    assert (summary["restarts"], summary["epochs"], summary["seconds"]) == (1, 3, 6.0)
    assert complaints(summary, 720) == []
    json.dumps(summary, allow_nan=False)


def test_the_worker_that_comes_back_counts_from_where_it_joined() -> None:
    parts = story()
    parts["back"] = joined(NEW, 2, 4, 13.5, ["2.1"], step=19)  # in the middle of a round that was retried
    assert worker_steps(recorded(parts)) == 4 * 17 - 3


@pytest.mark.parametrize("what", ["missing", "two", "digest", "back", "same step", "two epochs", "epoch before"])
def test_a_lost_round(what: str) -> None:
    parts = story()
    parts["without"] = {
        "missing": [],
        "two": [*landed(4, TWO, 1), *landed(4, ALL, 0, at=13.2)[2:]],  # "2.0" has committed it alone
        "digest": [*landed(4, TWO, 1)[:1], *landed(4, TWO, 1, digest=0.1)[1:]],
        "back": landed(4, TWO, 1, step=11),
        "same step": landed(4, TWO, 1, step=12),
        "two epochs": [*landed(4, TWO, 1)[:1], *landed(4, TWO, 2)[1:]],
        "epoch before": landed(4, TWO, 1),
    }[what]
    if what == "epoch before":  # round 5 goes on from somewhere else
        parts["after"] = [*landed(5, NEW, 0), *(event for number in (6, 7) for event in landed(number, NEW, 2))]
    assert consistency.lost_rounds(recorded(parts)) == 1
    assert "1 committed rounds were lost" in complaints(summarize(recorded(parts), None, 0.5, []), 720)


def test_a_round_that_is_written_down_late() -> None:
    """By a worker that had landed it, was given up, and is back when it says so."""
    parts = story()
    back = joined(ALL, 2, 4, 13.5, ["2.0"])
    (late,) = landed(3, ALL, 0, at=13.6, digest=None)[2:]  # by "2.0", which has the others' state by now
    parts |= {"before": [e for e in parts["before"] if (e.round, e.worker) != (3, "2.0")], "back": [*back, late]}
    assert consistency.lost_rounds(recorded(parts)) == 0
    for other in ({"members": ("2.0",)}, {"epoch": 2}, {"digest": 4 / 8}, {"step": 13}):
        parts["back"] = [*back, late._replace(**other)]
        assert consistency.lost_rounds(recorded(parts)) == 1


@pytest.mark.parametrize("what", ["newcomer", "survivor", "nobody", "behind"])
def test_a_wiped_state(what: str) -> None:
    parts = story()
    fresh = joined(NEW, 2, 4, 13.5, ["2.1"], digest=77.0)
    parts["back"], expected = {
        "newcomer": ([*parts["back"][:2], fresh[2]], 1),
        "survivor": ([parts["back"][0], fresh[1], parts["back"][2]], 1),
        "nobody": (joined(NEW, 2, 4, 13.5, NEW), 3),
        "behind": (joined(NEW, 2, 3, 13.5, ["2.1"], digest=4 / 8), 3),
    }[what]
    assert consistency.wiped_states(recorded(parts)) == expected
    assert complaints(summarize(recorded(parts), None, 0.5, []), 720)[0].startswith(f"{expected} times a worker")


def test_a_start_of_newcomers_alone_and_prints_that_are_not_there_are_no_wiped_states() -> None:
    parts = story()
    assert consistency.wiped_states(recorded(parts)) == 0
    parts = {name: [event._replace(digest=None) for event in part] for name, part in parts.items()}
    assert consistency.wiped_states(recorded(parts)) == 0
    summary = summarize(recorded(parts), None, 0.5, [])
    assert not summary["digest"]
    assert "wiped states are detected by round only, not by digest" in text_of(summary)
    assert consistency.wiped_states(RunRecord([], [])) == consistency.lost_rounds(RunRecord([], [])) == 0


def test_faults_that_are_not_survived() -> None:
    parts = story()
    parts["after"] = parts["back"] = []  # it has recovered, but its victim has not come back
    (outcome,) = recovery.fault_outcomes(recorded(parts))
    assert (outcome.survived, outcome.recovered) == (False, pytest.approx(0.5))
    parts["without"] = []  # nor has it recovered
    (outcome,) = recovery.fault_outcomes(recorded(parts))
    assert (outcome.survived, outcome.recovered, outcome.noticed) == (False, None, None)
    assert complaints(summarize(recorded(parts), None, 0.5, []), 720) == ["1 of 1 faults were not survived"]


def test_faults_that_are_never_injected() -> None:
    summary = summarize(recorded(story())._replace(scheduled=3), None, 0.5, [])
    assert (summary["scheduled"], summary["given_up"], summary["faults"]) == (3, 2, 1)
    assert complaints(summary, 720) == ["2 of 3 scheduled faults were not injected"]
    assert "1 survived; 3 were scheduled, 2 given up" in text_of(summary)


def test_deaths_that_no_kill_explains() -> None:
    run = recorded(story())
    ends = [
        END | {"worker": "0.0", "code": -6},
        END | {"worker": "1.0", "code": 5},
        END | {"worker": "1.1", "code": -9},  # of the same slot as nobody who was struck
        END | {"worker": "1.2", "code": 0, "lost": False},
        {"kind": "started", "time": 12.6, "slot": 1, "worker": "1.1"},
    ]
    summary = summarize(run._replace(rows=[END, *ends]), None, 0.5, [])
    assert summary["unplanned_deaths"] == ["0.0 (SIGABRT)", "1.0 (exit code 5)", "1.1 (SIGKILL)"]
    complaint = "3 workers died without being killed: 0.0 (SIGABRT), 1.0 (exit code 5), 1.1 (SIGKILL)"
    assert complaints(summary, 720) == [complaint]
    # one that had ended by itself when it was to be killed; and one that was only stopped
    assert consistency.unplanned_deaths(run._replace(rows=[END | {"code": 5}])) == ["2.0 (exit code 5)"]
    assert consistency.unplanned_deaths(run._replace(faults=(KILL._replace(kind="stop"),))) == ["2.0 (SIGKILL)"]
    # in the run without faults, too, which the throughput is compared with
    calm = summarize(run, RunRecord(run.events, [END | {"worker": "1.0"}]), 0.5, [])
    assert calm["unplanned_deaths"] == ["1.0 (SIGKILL)"]


# The methods whose workers keep a common vector between the rounds; as their papers have it, not as the code says.
COMMON = {"swarm", "diloco", "slowmo", "bmuf", "easgd", "edit", "sparta-diloco"}


@pytest.mark.parametrize("name", sorted(n for n, kind in STRATEGIES.items() if kind.target == "weights"))
def test_what_a_digest_is_of(name: str) -> None:
    """Of the common vectors; not of counts and sizes, which are the same in a state that was wiped."""
    layout = Layout(("a", "b"), (2, 3), 5)
    x = torch.arange(1.0, 6.0)
    one, same, other = (
        simulate(lambda comm, x=x: STRATEGIES[name]().init(x, layout, comm), 1) for x in (x, x.clone(), 2 * x)
    )
    assert shared_digest(one) == shared_digest(same)
    if name in COMMON:
        assert shared_digest(one) == 15.0
        assert shared_digest(other) == 30.0
    else:
        assert shared_digest(one) is None


def test_a_worker_that_stood_still() -> None:
    still = InjectedFault(12.5, "stop", 2, "2.0", 13.2)
    same = {name: [e._replace(members=tuple(m.replace("2.1", "2.0") for m in e.members),
                              worker=e.worker.replace("2.1", "2.0")) for e in part]
            for name, part in story().items()}  # fmt: skip
    run = RunRecord(recorded(same).events, [], (still,))
    (outcome,) = recovery.fault_outcomes(run)
    assert (outcome.survived, outcome.recovered) == (True, pytest.approx(0.5))
    assert live_seconds(run, 10.0, 16.0) == pytest.approx(6 + 6 + 2.5 + 2.5)
    # one that goes on before the others gave it up: the round waits for it
    waited = story() | {"left": [], "back": [], "without": landed(4, ALL, 0, at=13.4), "after": landed(5, ALL, 0)}
    run = RunRecord(recorded(waited).events, [], (still,))
    (outcome,) = recovery.fault_outcomes(run)
    assert (outcome.survived, outcome.recovered, outcome.noticed) == (True, pytest.approx(0.9), None)
    assert live_seconds(run, 10.0, 14.0) == pytest.approx(4 + 4 + 2.5 + 0.58)  # from its word at 13.42
    for_ever = still._replace(until=math.inf)
    (outcome,) = recovery.fault_outcomes(RunRecord(recorded(same).events, [], (for_ever,)))
    assert not outcome.survived


def test_faults_that_take_nobody_away() -> None:
    (outcome,) = recovery.fault_outcomes(recorded(story(), InjectedFault(12.5, "slow", 2, "2.0", 14.5)))
    assert (outcome.survived, outcome.recovered) == (True, pytest.approx(1.5))  # the second round from then
    full = InjectedFault(12.5, "disk", None, None, 14.5)
    failed, saved = Saved(13.0, "0.0", "no space left"), Saved(15.0, "0.0", "")
    for words, survived in (([failed, saved], True), ([failed], False), ([], True), ([saved], True)):
        (outcome,) = recovery.fault_outcomes(recorded(story() | {"words": words}, full))
        assert outcome.survived is survived
    (outcome,) = recovery.fault_outcomes(recorded(story() | {"words": [failed, saved._replace(time=12.0)]}, full))
    assert not outcome.survived


def test_complaints() -> None:
    good = summarize(recorded(story()), None, 0.52, [0.5, 0.51, 0.49])
    assert complaints(good, 120) == []
    assert complaints(good | {"final_loss": 0.521}, 120) == [
        "the final loss 0.5210 is above 0.5000 by more than 2 x 0.0100"
    ]
    assert complaints(good | {"final_loss": 0.1}, 120) == []
    assert complaints(good | {"final_loss": math.nan}, 120) != []
    assert complaints(good | {"final_loss": None}, 120) == ["the run did not finish"]
    assert complaints(good | {"throughput_ratio": 0.949}, 120) == [
        "the throughput per live worker is 0.949 of the fault-free one, below 0.95"
    ]
    assert complaints(good | {"throughput_ratio": 0.949}, 121) == []
    nothing = summarize(RunRecord([], []), RunRecord([], []), None, [])
    assert complaints(nothing, 720) == ["no round was committed", "the run did not finish"]


def test_reading_what_workers_write(tmp_path: Path) -> None:
    tail = Tail(tmp_path)
    assert tail.new() == []
    (tmp_path / "events").mkdir()
    about = {"time": 2.0, "worker": "0.0", "epoch": 1, "round": 3, "step": 12, "members": ["0.0"], "digest": 0.5}
    lines = [
        {"kind": "round", **about, "averaged": 1, "loss": 0.25, "more": "is not minded"},
        {"kind": "joined", **about, "time": 1.0, "newcomer": True, "seconds": 0.1},
        {"kind": "checkpoint failed", "time": 4.0, "worker": "0.0", "why": "no space"},
        {"kind": "done", "time": 5.0, "worker": "0.0"},
        {"kind": "round", "time": 6.0},
        [],
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines) + '{"kind": "ro\n{"kind": "checkpoint", "time": 3.0'
    (tmp_path / "events" / "0.jsonl").write_text(text)
    first = Joined(1.0, "0.0", 1, 3, 12, ("0.0",), True, 0.1, 0.5)
    assert tail.new() == [
        first,
        Landed(2.0, "0.0", 1, 3, 12, ("0.0",), 1, 0.25, 0.5),
        Saved(4.0, "0.0", "no space"),
    ]
    assert tail.new() == []
    with (tmp_path / "events" / "0.jsonl").open("a") as file:
        file.write(', "worker": "0.0", "step": 20}\n')
    assert tail.new() == [Saved(3.0, "0.0", "")]
    assert event("nothing") is None


def test_what_a_storm_writes_is_read_again(tmp_path: Path) -> None:
    log = FaultLog(tmp_path)
    log.write("strike", fault=0, what="stop", slot=1, worker="1.0")
    log.write("strike", fault=1, what="disk", slot=None, worker=None)
    log.write("over", fault=0, what="stop")
    rows = [json.loads(line) for line in (tmp_path / "storm.jsonl").read_text().splitlines()]
    assert rows == log.rows
    stop, full = injected_faults(rows)
    assert stop == InjectedFault(rows[0]["time"], "stop", 1, "1.0", rows[2]["time"])
    assert full.until == math.inf


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


class Injection:
    """Real processes that only wait, faults injected into them, and the events that a group would write."""

    def __init__(
        self, folder: Path, supervisor: Supervisor, faults: Sequence[ScheduledFault], **means: Any
    ) -> None:
        (folder / "events").mkdir()
        self.folder, self.supervisor, self.log = folder, supervisor, FaultLog(folder)
        self.injector = Injector(faults, Means(supervisor, self.log, **means))
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
               "step": 3, "members": members, "newcomer": False, "seconds": 0.0, "digest": 0.0}  # fmt: skip
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
def injection(tmp_path: Path, forked: None) -> Iterator[Any]:
    (tmp_path / "waits.py").write_text(WAITS)
    with ExitStack() as stack:

        def start(workers: int, *faults: ScheduledFault, **means: Any) -> Injection:
            manner = SupervisorOptions(program=str(tmp_path / "waits.py"))
            supervisor = stack.enter_context(Supervisor([], workers, tmp_path, None, manner))
            return Injection(tmp_path, supervisor, faults, **means)

        yield start


@pytest.mark.slow
def test_faults_are_injected_into_real_processes(injection: Any) -> None:
    faults = [ScheduledFault(1.0, "kill", 1, 0.0), ScheduledFault(2.0, "stop", 1, 4.0),
              ScheduledFault(3.0, "kill", 2, 0.0),
              ScheduledFault(4.0, "slow", 3, 5.0), ScheduledFault(9.5, "kill", 0, 0.0)]  # fmt: skip
    there: Injection = injection(4, *faults)
    injector, supervisor = there.injector, there.supervisor
    injector.tick(1.5)
    assert there.strikes() == []  # nobody has joined a group yet: it waits
    assert [row["kind"] for row in there.log.rows] == ["postponed"]
    there.group()
    injector.tick(1.6)
    assert there.strikes() == [("kill", 1, "1.0")]
    assert injector.round == 7
    there.until(lambda: supervisor.living.get(1) == "1.1")
    assert sorted(injector.healthy) == [0, 2, 3]  # 1.1 is no member yet
    injector.tick(2.0)
    assert there.strikes()[1:] == [("stop", 2, "2.0")]  # the next one
    assert there.stands(2, True)
    injector.tick(3.0)
    assert len(there.strikes()) == 2  # two would not be left
    there.group()
    injector.tick(3.1)
    assert there.strikes()[2:] == [("kill", 3, "3.0")]  # 2 is under a fault
    there.until(lambda: supervisor.living.get(3) == "3.1")
    there.group()
    injector.tick(4.0)
    assert there.strikes()[3:] == [("slow", 3, "3.1")]
    assert there.stands(3, True)
    injector.tick(4.1)
    assert there.stands(3, True)  # for the rest of the pulse
    injector.tick(4.2)
    assert there.stands(3, False)
    assert there.stands(2, True)
    injector.tick(4.4)
    assert there.stands(3, True)
    injector.tick(6.0)
    assert there.stands(2, False)  # over, 4 s after it began
    injector.tick(9.0)
    assert there.stands(3, False)
    assert sorted(injector.healthy) == [0, 1, 2, 3]
    injector.end()
    assert [row["fault"] for row in there.log.rows if row["kind"] == "given up"] == [4]
    assert [row["fault"] for row in there.log.rows if row["kind"] == "over"] == [0, 2, 1, 3]
    assert injector.injected == 4


def test_the_end_of_the_injection_undoes_all(injection: Any) -> None:
    there: Injection = injection(3, ScheduledFault(0.0, "stop", 0, 9.0), ScheduledFault(0.0, "slow", 1, 9.0))
    there.group()
    there.injector.tick(0.0)
    assert there.stands(0, True)
    assert there.stands(1, True)
    there.injector.end()
    assert there.stands(0, False)
    assert there.stands(1, False)


def test_a_fault_is_not_passed_on_to_a_successor(injection: Any) -> None:
    there: Injection = injection(3, ScheduledFault(0.0, "slow", 0, 9.0))
    there.group()
    there.injector.tick(0.0)
    there.supervisor.send_signal("0.0", signal.SIGKILL)
    there.until(lambda: there.supervisor.living.get(0) == "0.1")
    there.injector.tick(0.2)
    there.injector.tick(0.4)
    assert there.stands(0, False)


class FullDisk:
    def __init__(self) -> None:
        self.calls: list[str] = []

    def fill(self) -> None:
        self.calls.append("fill")

    def free(self) -> None:
        self.calls.append("free")


def test_one_disk_is_filled_once_at_a_time(injection: Any) -> None:
    full = FullDisk()
    there: Injection = injection(
        3, ScheduledFault(0.0, "disk", None, 2.0), ScheduledFault(1.0, "disk", None, 2.0), disk=full
    )
    for now, calls in ((0.0, 1), (1.0, 1), (1.9, 1), (2.0, 3), (3.9, 3), (4.0, 4)):
        there.injector.tick(now)
        assert len(full.calls) == calls
    assert full.calls == ["fill", "free", "fill", "free"]


@pytest.mark.skipif(bool(lacks(check_rights)), reason=lacks(check_rights))
def test_a_link_is_cut_and_mended(injection: Any) -> None:
    with Network(3, Link(1e9)) as network:
        there: Injection = injection(3, ScheduledFault(0.0, "cut", 1, 2.0), network=network)
        there.group()

        def reached(rank: int) -> bool:
            asks = f"import socket; socket.create_connection(('{network.store_host}', 9), 0.5)"
            command = network.command(rank, [sys.executable, "-S", "-c", asks])
            return "refused" in subprocess.run(command, capture_output=True, text=True).stderr

        assert reached(1)
        there.injector.tick(0.0)
        assert reached(0)
        assert not reached(1)
        there.injector.tick(2.0)
        assert reached(1)


@pytest.mark.skipif(bool(lacks(check_rights)), reason=lacks(check_rights))
def test_a_link_that_is_cut_one_way(injection: Any) -> None:
    """Datagrams say who hears whom: with TCP both directions are needed for anything."""
    listens = (
        "import socket; s = socket.socket(type=2); s.bind(('', 9)); s.settimeout(20); print('ready', flush=True)"
    )
    listens += "\nwhile True: print(s.recv(9).decode(), flush=True)"
    faults = [ScheduledFault(0.0, "mute", 1, 1.0), ScheduledFault(2.0, "deaf", 1, 1.0)]
    with Network(3, Link(1e9)) as network, ExitStack() as stack:
        there: Injection = injection(3, *faults, network=network)
        there.group()
        heard = list[subprocess.Popen[str]]()
        for rank in (0, 1):
            command = network.command(rank, [sys.executable, "-S", "-c", listens])
            heard.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
            stack.callback(heard[rank].communicate)
            stack.callback(heard[rank].kill)
            assert heard[rank].stdout
            assert heard[rank].stdout.readline() == "ready\n"

        def say(word: str) -> None:
            for rank in (0, 1):  # to the other, and last to itself over its own link
                to = network.address(1 - rank)
                asks = f"import socket; socket.socket(type=2).sendto(b'{word}', ('{to}', 9))"
                subprocess.run(network.command(rank, [sys.executable, "-S", "-c", asks]), check=True)

        for now, word in ((-1.0, "a"), (0.0, "mute"), (1.0, "b"), (2.0, "deaf"), (3.0, "c")):
            there.injector.tick(now)
            say(word)
        for rank, words in ((0, ["a", "b", "deaf", "c"]), (1, ["a", "mute", "b", "c"])):
            out = heard[rank].stdout
            assert out
            assert [out.readline().strip() for _ in words] == words


@pytest.mark.skipif(bool(lacks(disk.check_rights)), reason=lacks(disk.check_rights))
def test_a_disk_is_read_only_and_writable_again(tmp_path: Path) -> None:
    with Disk(tmp_path / "checkpoints") as there:
        there.lock()
        with pytest.raises(OSError, match="Read-only"):
            (tmp_path / "checkpoints" / "file").write_bytes(b"x")
        there.unlock()
        (tmp_path / "checkpoints" / "file").write_bytes(b"x")


@pytest.mark.skipif(bool(lacks(memory.check_rights)), reason=lacks(memory.check_rights))
def test_who_has_no_memory_is_ended_by_the_kernel() -> None:
    grows = (
        "import sys; print('ready', flush=True); sys.stdin.readline(); x = [bytearray(1 << 20) for _ in range(99)]"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-S", "-c", grows], **pipes)
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    limit = memory.MemoryLimit(process.pid)
    process.communicate("\n", timeout=LIMIT)
    assert process.returncode == -signal.SIGKILL
    limit.remove()
    assert not [*memory.ROOT.glob(f"**/{memory.NAME}{process.pid}")]


def test_a_changed_checkpoint_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "step-00000008" / "rank-00000.pt"
    path.parent.mkdir()
    write(path, content_of(8, {"x": torch.ones(100)}, 0, 1, "a"))
    assert flip_a_bit(path)
    assert flip_a_bit(tmp_path / "step-00000009" / "rank-00000.pt")  # the workers have removed it


def test_a_worker_that_joins_and_leaves(injection: Any) -> None:
    there: Injection = injection(3, ScheduledFault(0.0, "churn", 1, 60.0))
    there.group()
    for incarnation in range(4):
        there.injector.tick(float(incarnation))
        there.until(lambda n=incarnation: there.supervisor.living.get(1) == f"1.{n + 1}")
        there.injector.tick(incarnation + 0.5)  # it is no member yet
        assert there.supervisor.living[1] == f"1.{incarnation + 1}"
        there.group()
    there.injector.end()
    assert [row["worker"] for row in there.log.rows if row["kind"] == "killed"] == ["1.1", "1.2", "1.3"]


def test_faults_that_strike_together() -> None:
    alone, some, all_ = (schedule(5, 620.0, 720.0, 8, KINDS, share) for share in (0.0, 0.3, 1.0))
    assert len({fault.at for fault in alone}) == len(alone) == 120
    assert 60 < len({fault.at for fault in some}) < 110
    assert len({fault.at for fault in all_}) == 1
    assert some == schedule(5, 620.0, 720.0, 8, KINDS, 0.3)


def options(*given: str) -> ChaosSettings:
    context = load("chaos").make_context("chaos", ["digits", *given])
    return ChaosSettings(**fields_of(ChaosSettings, context.params))


def text_of(summary: Mapping[str, Any]) -> str:
    return verdict_text.verdict_text({**summary, "skipped": {"cut": "needs root"}, "complaints": [], "growth": {}})


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        (["--workers", "2"], "--workers: expected 3 to 200, found 2"),
        (["--minutes", "0.3"], "--minutes: expected 0.333"),
        (["--faults-per-hour", "0"], "--faults-per-hour: expected 0.001 to 36000, found 0"),
        (["--pace", "-1"], "--pace: expected 0 to 60, found -1"),
        (["--silence", "1"], "--silence: expected 2 to 1e+06, found 1"),
        (["--fault-free-runs", "1"], "--fault-free-runs: expected 0, or at least 2"),
        (["--link", "fast"], "fast"),
        (
            ["--minutes", str(20 / 60)],
            "--minutes: expected more than the 20 s at the end that stay free of faults",
        ),
        (["--minutes", "nan"], "--minutes: expected"),
    ],
)
def test_options_out_of_range(given_: list[str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        options(*given_)
    assert message in str(caught.value)


def test_kinds_that_are_not_possible_are_left_out_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    kinds, skipped = trial.possible(None)
    assert kinds == ["kill", "stop", "slow", "churn", "replay"]
    assert set(skipped) == {*KINDS} - {*kinds}
    assert skipped["leader"] == skipped["supervisor"] == "it needs --store etcd"
    assert trial.possible("kill,leader,supervisor", "etcd") == (["kill", "leader", "supervisor"], {})
    assert trial.possible("kill,slowdisk,clock") == (["kill"], IMPOSSIBLE)
    assert "root" in skipped["cut"]
    assert "root" in skipped["disk"]
    assert trial.possible("slow,kill") == (["slow", "kill"], {})
    with pytest.raises(UsageError, match=r"--kinds: none of them is possible: .*root"):
        trial.possible("cut")
    with pytest.raises(UsageError, match=r"--kinds: expected some of kill, stop, cut, .*, found 'kil'"):
        trial.possible("kil")


def test_the_storm_and_what_it_is_compared_with_train_alike() -> None:
    args = options("--workers", "5", "--every", "4", "--data", "DIR", "--seed", "3")
    storm, calm = command_line.elastic(args), command_line.simulation(args, 40)
    assert storm[storm.index("--elastic") + 1] == "local"
    assert storm[storm.index("--checkpoint-every") + 1] == "50"
    pairs = {name: (storm[storm.index(name) + 1], calm[calm.index(name) + 1]) for name in
             ("--strategy", "--every", "--workers", "--schedule", "--data")}  # fmt: skip
    assert all(one == other for one, other in pairs.values())
    assert calm[calm.index("--steps") + 1] == "40"


def test_the_command_that_makes_a_storm_names_no_folders() -> None:
    given = ["--workers", "5", "--minutes", "0.5", "--kinds", "kill,stop", "--link", "100mbit,2ms"]
    args = options(*given, "--pace=0.02", "--data", "MY DATA", "--out=MINE", "--json", "--silence", "2")
    made = command_line.command_line(args)
    assert made.startswith("swarmstep chaos digits --")
    assert options(*shlex.split(made)[3:]) == dataclasses.replace(args, data=None)
    assert command_line.command_line(options()) == "swarmstep chaos digits"


@pytest.mark.slow
def test_fault_free_runs_give_their_losses(tmp_path: Path) -> None:
    progress: list[str] = []
    context = RunContext(2, None, [], progress.append)
    train = ["train", "digits", "--workers", "2", "--steps", "8"]
    (loss,) = simulated_losses(train, [1], tmp_path, context)
    assert loss == json.loads((tmp_path / "fault-free-1" / "summary.json").read_text())["test_loss"]
    assert len(progress) == 1
    with pytest.raises(CommError, match=r"fault-free-5 ended with code 2: swarmstep: .*nowhere"):
        simulated_losses(["train", "nowhere"], [5], tmp_path, context)
    context.interrupts.append(2)
    with pytest.raises(Interrupted):
        simulated_losses(train, [3], tmp_path, context)


def test_the_verdict_verdict_text() -> None:
    summary = summarize(recorded(story()), None, 0.52, [0.5, 0.51, 0.49])
    text = text_of(summary)
    assert "1 faults in 6 s, 1 survived; 1 were scheduled, 0 given up" in text
    assert "digest" not in text
    assert "kill: 1 of 1 survived, noticed in 0.10 s (at most 0.10 s)" in text
    assert "cut: skipped: needs root" in text
    assert "7 committed rounds, 0 of them lost; 0 wiped states; 1 restarts" in text
    assert "test loss 0.5200; without faults 0.5000, standard deviation 0.0100" in text
    assert "verdict: nothing was lost" in text


def test_a_short_storm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All of it for real: 3 workers, of which one is killed, one stands still and one is slow, in 15 s."""
    monkeypatch.setattr(schedule_, "QUIET", 7.0)
    monkeypatch.setattr(schedule_, "SECONDS", {"stop": (2.5, 3.0), "slow": (1.0, 1.5)})
    given = [
        "chaos",
        "digits",
        "--workers",
        "3",
        "--minutes",
        "0.25",
        "--faults-per-hour",
        "1350",
        "--kinds",
        "kill,stop,slow",
    ]
    given += ["--pace", "0.02", "--every", "8", "--baseline-seconds", "0", "--fault-free-runs", "0", "--json"]
    code = main([*given, "--out", str(tmp_path / "storm")])
    out, err = capsys.readouterr()
    assert out, err
    summary = json.loads(out)
    assert (code, summary["complaints"]) == (0, []), err
    assert summary["scheduled"] == summary["faults"] == summary["survived"] == 3
    assert (summary["given_up"], summary["unplanned_deaths"], summary["digest"]) == (0, [], True)
    assert {kind: row["faults"] for kind, row in summary["kinds"].items()} == {"kill": 1, "stop": 1, "slow": 1}
    assert (summary["wiped_states"], summary["lost_rounds"]) == (0, 0)
    assert summary["committed_rounds"] > 5
    assert 0 < summary["final_loss"] < math.log(10)
    written = (tmp_path / "storm" / "chaos.json").read_text()
    assert json.loads(written).items() >= summary.items()
    assert str(tmp_path) not in written + out
    samples = [json.loads(line) for line in (tmp_path / "storm" / "storm" / SAMPLES).read_text().splitlines()]
    assert {row["who"] for row in samples} >= {"supervisor", "store", "worker 0.0", "worker 1.0", "worker 2.0"}
    for row in samples:
        assert all(row[what] > 0 for what in row.keys() - {"time", "who"})
    assert "15 s with 3 faults, 3 workers" in err


@pytest.mark.slow
@pytest.mark.skipif(bool(lacks(etcd.check_rights)), reason=lacks(etcd.check_rights))
def test_a_storm_in_which_no_process_is_special(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An etcd whose leader is killed, supervisors of which one is, old messages, and rounds by time."""
    given = ["chaos", "digits", "--workers", "4", "--supervisors", "2", "--store", "etcd", "--balance", "time"]
    given += [
        "--when",
        "time:0.8",
        "--pace",
        "0.05",
        "--silence",
        "3",
        "--minutes",
        "1",
        "--faults-per-hour",
        "360",
    ]
    given += ["--kinds", "leader,supervisor,replay,churn", "--baseline-seconds", "0", "--fault-free-runs", "0"]
    code = main([*given, "--json", "--out", str(tmp_path / "storm")])
    out, err = capsys.readouterr()
    assert out, err
    summary = json.loads(out)
    assert (code, summary["complaints"]) == (0, []), err
    assert summary["scheduled"] == summary["faults"] == summary["survived"] == 4
    assert set(summary["kinds"]) == {"leader", "supervisor", "replay", "churn"}
    assert (summary["wiped_states"], summary["lost_rounds"], summary["unplanned_deaths"]) == (0, 0, [])


@pytest.mark.slow
@pytest.mark.skipif(bool(lacks(disk.check_rights) + lacks(check_rights)), reason="needs root, and namespaces")
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
        *_, last = (tmp_path / "second.errors").read_text().splitlines()
        assert last.startswith("swarmstep: stopped on request, before there was a verdict")
        assert not mounted(others)
        assert not any(space.exists() for space in more)
    finally:
        for process in processes:
            process.kill()
            process.wait()
