"""Storms: their schedule, what they do to processes, and what their logs come to."""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import signal
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from swarmstep.chaos import verdict
from swarmstep.chaos.event_log import Joined, Landed, Log, Saved, Struck, Tail, event, struck
from swarmstep.chaos.schedule import KINDS, QUIET, SECONDS, schedule, victim
from swarmstep.chaos.verdict import Ride, complaints, summarize
from swarmstep.cli import chaos
from swarmstep.comm.sim import simulate
from swarmstep.errors import UsageError
from swarmstep.launch.processes import noting_interrupts
from swarmstep.signal import Layout
from swarmstep.strategies import STRATEGIES
from swarmstep.train.worker_events import shared_print

LIMIT = 60.0  # seconds; a hang, not a measurement


kinds = st.lists(st.sampled_from(KINDS), min_size=1, unique=True)


@given(st.integers(0, 2**40), st.floats(20.5, 3600), st.floats(1, 3600), st.integers(1, 12), kinds)
def test_a_schedule_is_even_exact_and_leaves_the_end_alone(
    seed: int, seconds: float, per_hour: float, workers: int, kinds: list[str]
) -> None:
    faults = schedule(seed, seconds, per_hour, workers, kinds)
    assert faults == schedule(seed, seconds, per_hour, workers, kinds)
    stormy = seconds - 20
    assert len(faults) == round(per_hour * stormy / 3600)
    for index, fault in enumerate(faults):  # one in each interval
        assert index * stormy / len(faults) <= fault.at <= (index + 1) * stormy / len(faults)
        shortest, longest = SECONDS.get(fault.kind, (0, 0))
        assert shortest <= fault.seconds <= longest
    counts = Counter(fault.kind for fault in faults)
    assert max(counts.values(), default=0) - min((counts[kind] for kind in kinds), default=0) <= 1
    assert set(counts) <= set(kinds)
    slots = Counter(fault.slot for fault in faults if fault.kind != "disk")
    assert max(slots.values(), default=0) - min(slots[slot] for slot in range(workers)) <= 1
    assert all(fault.slot is None for fault in faults if fault.kind == "disk")


def test_what_the_issue_asks_for() -> None:
    faults = schedule(0, 300.0, 720.0, 8, KINDS)
    assert len(faults) == 56  # 60 in 5 minutes, less those of the quiet end
    assert {fault.kind for fault in faults} == {"kill", "stop", "cut", "slow", "disk"}
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
    about = {"epoch": epoch, "round": number, "step": 4 * number, "print": number / 8, **more}
    return [
        Landed(at + 0.01 * k, name, members=(*members,), averaged=len(members), loss=1.0, **about)
        for k, name in enumerate(members)
    ]


def joined(
    members: Sequence[str], epoch: int, number: int, at: float, new: Sequence[str] = (), **more: Any
) -> list[Joined]:
    about = {"round": number, "step": 4 * number, "seconds": 0.25, "print": number / 8, **more}
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


KILL = Struck(12.5, "kill", 2, "2.0", 12.5)
END = {"kind": "ended", "time": 12.52, "slot": 2, "worker": "2.0", "lost": True, "code": -9}


def told(parts: Mapping[str, Sequence[Any]], *faults: Struck) -> Ride:
    events = sorted((event for part in parts.values() for event in part), key=lambda event: event.time)
    return Ride(events, [END], faults or (KILL,), len(faults) or 1)


def test_a_log_where_all_went_well() -> None:
    ride = told(story())
    calm = Ride([*joined(ALL, 0, 0, 9.0, ALL), *(e for n in range(1, 6) for e in landed(n, ALL, 0))], [])
    assert verdict.throughput(calm) == pytest.approx(4.0)  # steps a second, of each worker
    summary = summarize(ride, calm, 0.52, [0.5, 0.51, 0.49])
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
    assert verdict.worker_steps(told(parts)) == 4 * 17 - 3


@pytest.mark.parametrize("what", ["missing", "two", "print", "back", "same step", "two epochs", "epoch before"])
def test_a_lost_round(what: str) -> None:
    parts = story()
    parts["without"] = {
        "missing": [],
        "two": [*landed(4, TWO, 1), *landed(4, ALL, 0, at=13.2)[2:]],  # "2.0" has committed it alone
        "print": [*landed(4, TWO, 1)[:1], *landed(4, TWO, 1, print=0.1)[1:]],
        "back": landed(4, TWO, 1, step=11),
        "same step": landed(4, TWO, 1, step=12),
        "two epochs": [*landed(4, TWO, 1)[:1], *landed(4, TWO, 2)[1:]],
        "epoch before": landed(4, TWO, 1),
    }[what]
    if what == "epoch before":  # round 5 goes on from somewhere else
        parts["after"] = [*landed(5, NEW, 0), *(event for number in (6, 7) for event in landed(number, NEW, 2))]
    assert verdict.lost_rounds(told(parts)) == 1
    assert "1 committed rounds are not continued" in complaints(summarize(told(parts), None, 0.5, []), 720)


def test_a_round_that_is_written_down_late() -> None:
    """By a worker that had landed it, was given up, and is back when it says so."""
    parts = story()
    back = joined(ALL, 2, 4, 13.5, ["2.0"])
    (late,) = landed(3, ALL, 0, at=13.6, print=None)[2:]  # by "2.0", which has the others' state by now
    parts |= {"before": [e for e in parts["before"] if (e.round, e.worker) != (3, "2.0")], "back": [*back, late]}
    assert verdict.lost_rounds(told(parts)) == 0
    for other in ({"members": ("2.0",)}, {"epoch": 2}, {"print": 4 / 8}, {"step": 13}):
        parts["back"] = [*back, late._replace(**other)]
        assert verdict.lost_rounds(told(parts)) == 1


@pytest.mark.parametrize("what", ["newcomer", "survivor", "nobody", "behind"])
def test_a_wiped_state(what: str) -> None:
    parts = story()
    fresh = joined(NEW, 2, 4, 13.5, ["2.1"], print=77.0)
    parts["back"], expected = {
        "newcomer": ([*parts["back"][:2], fresh[2]], 1),
        "survivor": ([parts["back"][0], fresh[1], parts["back"][2]], 1),
        "nobody": (joined(NEW, 2, 4, 13.5, NEW), 3),
        "behind": (joined(NEW, 2, 3, 13.5, ["2.1"], print=4 / 8), 3),
    }[what]
    assert verdict.wiped_states(told(parts)) == expected
    assert complaints(summarize(told(parts), None, 0.5, []), 720)[0].startswith(f"{expected} times a worker")


def test_a_start_of_newcomers_alone_and_prints_that_are_not_there_are_no_wiped_states() -> None:
    parts = story()
    assert verdict.wiped_states(told(parts)) == 0
    parts = {name: [event._replace(print=None) for event in part] for name, part in parts.items()}
    assert verdict.wiped_states(told(parts)) == 0
    summary = summarize(told(parts), None, 0.5, [])
    assert not summary["digest"]
    assert "a wiped state is seen by its round only, not by a digest" in in_words(summary)
    assert verdict.wiped_states(Ride([], [])) == verdict.lost_rounds(Ride([], [])) == 0


def test_faults_that_are_not_survived() -> None:
    parts = story()
    parts["after"] = parts["back"] = []  # it has recovered, but its victim has not come back
    (fate,) = verdict.fates(told(parts))
    assert (fate.survived, fate.recovered) == (False, pytest.approx(0.5))
    parts["without"] = []  # nor has it recovered
    (fate,) = verdict.fates(told(parts))
    assert (fate.survived, fate.recovered, fate.noticed) == (False, None, None)
    assert complaints(summarize(told(parts), None, 0.5, []), 720) == ["1 of 1 faults were not survived"]


def test_faults_that_are_never_struck() -> None:
    summary = summarize(told(story())._replace(scheduled=3), None, 0.5, [])
    assert (summary["scheduled"], summary["given_up"], summary["faults"]) == (3, 2, 1)
    assert complaints(summary, 720) == ["2 of 3 faults of the schedule were not struck"]
    assert "1 survived; 3 were scheduled, 2 given up" in in_words(summary)


def test_deaths_that_no_kill_explains() -> None:
    ride = told(story())
    ends = [
        END | {"worker": "0.0", "code": -6},
        END | {"worker": "1.0", "code": 5},
        END | {"worker": "1.1", "code": -9},  # of the same slot as nobody who was struck
        END | {"worker": "1.2", "code": 0, "lost": False},
        {"kind": "started", "time": 12.6, "slot": 1, "worker": "1.1"},
    ]
    summary = summarize(ride._replace(rows=[END, *ends]), None, 0.5, [])
    assert summary["unplanned_deaths"] == ["0.0 (SIGABRT)", "1.0 (exit code 5)", "1.1 (SIGKILL)"]
    said = "3 workers died that no kill had struck: 0.0 (SIGABRT), 1.0 (exit code 5), 1.1 (SIGKILL)"
    assert complaints(summary, 720) == [said]
    # one that had ended by itself when it was to be killed; and one that was only stopped
    assert verdict.unplanned_deaths(ride._replace(rows=[END | {"code": 5}])) == ["2.0 (exit code 5)"]
    assert verdict.unplanned_deaths(ride._replace(faults=(KILL._replace(kind="stop"),))) == ["2.0 (SIGKILL)"]
    # in the run without faults, too, which the throughput is compared with
    calm = summarize(ride, Ride(ride.events, [END | {"worker": "1.0"}]), 0.5, [])
    assert calm["unplanned_deaths"] == ["1.0 (SIGKILL)"]


# The methods whose workers keep a common vector between the rounds; as their papers have it, not as the code says.
COMMON = {"swarm", "diloco", "slowmo", "bmuf", "easgd"}


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_what_a_digest_is_of(name: str) -> None:
    """Of the common vectors; not of counts and sizes, which are the same in a state that was wiped."""
    layout = Layout(("a", "b"), (2, 3), 5)
    x = torch.arange(1.0, 6.0)
    one, same, other = (
        simulate(lambda comm, x=x: STRATEGIES[name]().init(x, layout, comm), 1) for x in (x, x.clone(), 2 * x)
    )
    assert shared_print(one) == shared_print(same)
    if name in COMMON:
        assert shared_print(one) == 15.0
        assert shared_print(other) == 30.0
    else:
        assert shared_print(one) is None


def test_a_worker_that_stood_still() -> None:
    still = Struck(12.5, "stop", 2, "2.0", 13.2)
    same = {name: [e._replace(members=tuple(m.replace("2.1", "2.0") for m in e.members),
                              worker=e.worker.replace("2.1", "2.0")) for e in part]
            for name, part in story().items()}  # fmt: skip
    ride = Ride(told(same).events, [], (still,))
    (fate,) = verdict.fates(ride)
    assert (fate.survived, fate.recovered) == (True, pytest.approx(0.5))
    assert verdict.live_seconds(ride, 10.0, 16.0) == pytest.approx(6 + 6 + 2.5 + 2.5)
    # one that goes on before the others gave it up: the round waits for it
    waited = story() | {"left": [], "back": [], "without": landed(4, ALL, 0, at=13.4), "after": landed(5, ALL, 0)}
    ride = Ride(told(waited).events, [], (still,))
    (fate,) = verdict.fates(ride)
    assert (fate.survived, fate.recovered, fate.noticed) == (True, pytest.approx(0.9), None)
    assert verdict.live_seconds(ride, 10.0, 14.0) == pytest.approx(4 + 4 + 2.5 + 0.58)  # from its word at 13.42
    for_ever = still._replace(until=math.inf)
    (fate,) = verdict.fates(Ride(told(same).events, [], (for_ever,)))
    assert not fate.survived


def test_faults_that_take_nobody_away() -> None:
    (fate,) = verdict.fates(told(story(), Struck(12.5, "slow", 2, "2.0", 14.5)))
    assert (fate.survived, fate.recovered) == (True, pytest.approx(1.5))  # the second round from then
    full = Struck(12.5, "disk", None, None, 14.5)
    failed, saved = Saved(13.0, "0.0", "no space left"), Saved(15.0, "0.0", "")
    for words, survived in (([failed, saved], True), ([failed], False), ([], True), ([saved], True)):
        (fate,) = verdict.fates(told(story() | {"words": words}, full))
        assert fate.survived is survived
    (fate,) = verdict.fates(told(story() | {"words": [failed, saved._replace(time=12.0)]}, full))
    assert not fate.survived


def test_complaints() -> None:
    good = summarize(told(story()), None, 0.52, [0.5, 0.51, 0.49])
    assert complaints(good, 120) == []
    assert complaints(good | {"final_loss": 0.521}, 120) == [
        "the final loss 0.5210 is above 0.5000 by more than 2 x 0.0100"
    ]
    assert complaints(good | {"final_loss": 0.1}, 120) == []
    assert complaints(good | {"final_loss": math.nan}, 120) != []
    assert complaints(good | {"final_loss": None}, 120) == ["the run did not come to its end"]
    assert complaints(good | {"throughput_ratio": 0.949}, 120) == [
        "the throughput per live worker is 0.949 of the fault-free one, below 0.95"
    ]
    assert complaints(good | {"throughput_ratio": 0.949}, 121) == []
    nothing = summarize(Ride([], []), Ride([], []), None, [])
    assert complaints(nothing, 720) == ["no round was committed", "the run did not come to its end"]


def test_reading_what_workers_write(tmp_path: Path) -> None:
    tail = Tail(tmp_path)
    assert tail.new() == []
    (tmp_path / "events").mkdir()
    about = {"time": 2.0, "worker": "0.0", "epoch": 1, "round": 3, "step": 12, "members": ["0.0"], "print": 0.5}
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
    log = Log(tmp_path)
    log.write("strike", fault=0, what="stop", slot=1, worker="1.0")
    log.write("strike", fault=1, what="disk", slot=None, worker=None)
    log.write("over", fault=0, what="stop")
    rows = [json.loads(line) for line in (tmp_path / "storm.jsonl").read_text().splitlines()]
    assert rows == log.rows
    stop, full = struck(rows)
    assert stop == Struck(rows[0]["time"], "stop", 1, "1.0", rows[2]["time"])
    assert full.until == math.inf


def test_a_terminal_that_hangs_up_is_an_interrupt_unless_that_is_ignored() -> None:
    before = signal.getsignal(signal.SIGHUP)
    try:
        with noting_interrupts(signal.SIGHUP) as interrupts:
            signal.raise_signal(signal.SIGHUP)
            signal.raise_signal(signal.SIGTERM)
        assert interrupts == [signal.SIGHUP, signal.SIGTERM]
        assert signal.getsignal(signal.SIGHUP) is before
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
        with noting_interrupts(signal.SIGHUP) as interrupts:
            signal.raise_signal(signal.SIGHUP)
        assert interrupts == []
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def command_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    chaos.add_options(parser)
    return parser


def options(*given: str) -> argparse.Namespace:
    return command_parser().parse_args(["digits", *given])


def in_words(summary: Mapping[str, Any]) -> str:
    return chaos.in_words({**summary, "skipped": {"cut": "needs root"}, "complaints": []})


@pytest.mark.parametrize(
    ("given_", "said"),
    [
        (["--workers", "2"], "--workers: expected 3 to 200, found 2"),
        (["--minutes", "0.3"], "--minutes: expected 0.333"),
        (["--faults-per-hour", "0"], "--faults-per-hour: expected 0.001 to 36000, found 0"),
        (["--pace", "-1"], "--pace: expected 0 to 60, found -1"),
        (["--silence", "1"], "--silence: expected 2 to 1e+06, found 1"),
        (["--fault-free-runs", "1"], "--fault-free-runs: expected 0, or 2 and more"),
        (["--link", "fast"], "fast"),
        (["--minutes", str(20 / 60)], "--minutes: expected more than the 20 s that stay quiet"),
        (["--minutes", "nan"], "--minutes: expected"),
    ],
)
def test_options_out_of_range(given_: list[str], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        chaos.check(options(*given_))
    assert said in str(caught.value)


def test_kinds_that_are_not_possible_are_left_out_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    found, skipped = chaos.possible(None)
    assert found == ["kill", "stop", "slow"]
    assert set(skipped) == {"cut", "disk"}
    assert "root" in skipped["cut"]
    assert "root" in skipped["disk"]
    assert chaos.possible("slow,kill") == (["slow", "kill"], {})
    with pytest.raises(UsageError, match=r"--kinds: none of them is possible: .*root"):
        chaos.possible("cut")
    with pytest.raises(UsageError, match="--kinds: expected some of kill, stop, cut, slow, disk, found 'kil'"):
        chaos.possible("kil")


def test_the_storm_and_what_it_is_compared_with_train_alike() -> None:
    args = options("--workers", "5", "--every", "4", "--data", "DIR", "--seed", "3")
    storm, calm = chaos.elastic(args), chaos.simulation(args, 40)
    assert storm[storm.index("--elastic") + 1] == "local"
    assert storm[storm.index("--checkpoint-every") + 1] == "50"
    pairs = {name: (storm[storm.index(name) + 1], calm[calm.index(name) + 1]) for name in
             ("--strategy", "--every", "--workers", "--schedule", "--data")}  # fmt: skip
    assert all(one == other for one, other in pairs.values())
    assert calm[calm.index("--steps") + 1] == "40"


def test_the_command_that_makes_a_storm_names_no_folders() -> None:
    given = ["--workers", "5", "--minutes", "0.5", "--kinds", "kill,stop", "--link", "100mbit,2ms"]
    args = options(*given, "--pace=0.02", "--data", "MY DATA", "--out=MINE", "--json", "--silence", "2")
    made = chaos.command_line(args)
    assert made.startswith("swarmstep chaos digits --")
    again = command_parser().parse_args(shlex.split(made)[2:])
    assert vars(again) == vars(args) | {"data": None, "out": None, "json": False}
    assert chaos.command_line(options()) == "swarmstep chaos digits"


def test_the_verdict_in_words() -> None:
    summary = summarize(told(story()), None, 0.52, [0.5, 0.51, 0.49])
    text = in_words(summary)
    assert "1 faults in 6 s, 1 survived; 1 were scheduled, 0 given up" in text
    assert "digest" not in text
    assert "kill: 1 of 1 survived, noticed in 0.10 s (at most 0.10 s)" in text
    assert "cut: left out: needs root" in text
    assert "7 committed rounds, 0 of them lost; 0 wiped states; 1 restarts" in text
    assert "test loss 0.5200; without faults 0.5000, standard deviation 0.0100" in text
    assert "verdict: nothing was lost" in text
