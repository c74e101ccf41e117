"""Signals to a run: to the process that the user started or to all processes, once or twice, however it runs."""

from __future__ import annotations

import contextlib
import itertools
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from swarmstep.checkpoint import loader
from swarmstep.launch import stopping
from swarmstep.launch.stopping import ONE_REQUEST, StopRequest, noting_interrupts

LIMIT = 120.0  # seconds; a hang, not a measurement
SWARMSTEP = (sys.executable, "-m", "swarmstep")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--monitor-interval", "0.1")
OUT = ("--workers", "2", "--out", "run")
TRAIN = ("train", "digits", *OUT, "--steps", "100000", "--every", "4", "--pace", "0.005")
COMPARE = ("compare", "digits", *OUT, "--strategies", "local-sgd", "--lr-grid", "0.02", "--seeds", "20")
STORM = ("--minutes", "2", "--baseline-seconds", "0", "--kinds", "kill")
CHAOS = ("chaos", "digits", "--workers", "3", "--out", "run", *STORM)


class Way(NamedTuple):
    """A way to run: the command, a file that is there once it trains, and what its end says."""

    command: tuple[str, ...]
    trains: str
    says: str


STOPPED = "stopped at step "
WAYS = {
    "sim": Way((*SWARMSTEP, *TRAIN), "run/metrics.jsonl", STOPPED),
    "gloo": Way((*SWARMSTEP, *TRAIN, "--backend", "gloo"), "run/metrics.jsonl", STOPPED),
    "elastic": Way((*SWARMSTEP, *TRAIN, "--elastic", "local"), "run/metrics.jsonl", STOPPED),
    "torchrun": Way((*TORCHRUN, "-m", "swarmstep", *TRAIN), "run/metrics.jsonl", STOPPED),
    "compare": Way((*SWARMSTEP, *COMPARE, "--steps", "400", "--jobs", "2"), "run/cells/*",
                   "stopped on request"),
    "chaos": Way((*SWARMSTEP, *CHAOS), "run/storm/metrics.jsonl", "stopped on request"),
}  # fmt: skip
NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGKILL)
FAST = {
    (signal.SIGTERM, "gloo", True, 2),
    (signal.SIGHUP, "elastic", True, 2),
    (signal.SIGINT, "sim", False, 2),
    (signal.SIGUSR1, "torchrun", False, 1),
    (signal.SIGTERM, "compare", True, 1),
}


def descendants(parent: int) -> list[int]:
    """Return the processes that a process has started, and those that they have started."""
    found = list[int]()
    for task in Path(f"/proc/{parent}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [int(pid) for pid in task.read_text().split()]
    return found + [pid for child in found for pid in descendants(child)]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def until(true: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + LIMIT
    while not true():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.01)


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Return a function that starts a command, and returns it once it trains; nothing of it outlives the test."""
    monkeypatch.chdir(tmp_path)
    started: list[subprocess.Popen[bytes]] = []
    seen: set[int] = set()

    def start(way: Way) -> tuple[subprocess.Popen[bytes], list[int]]:
        with (tmp_path / "said").open("wb") as said:
            process = subprocess.Popen(way.command, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
        started.append(process)
        until(lambda: process.poll() is not None or [*tmp_path.glob(way.trains)], "the training")
        assert process.poll() is None, (tmp_path / "said").read_text()
        seen.update(descendants(process.pid))
        return process, [*seen]

    yield start
    for process in started:
        process.kill()
        process.wait()
    for pid in seen:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def cases() -> list[Any]:
    found = list[Any]()
    for case in itertools.product(NUMBERS, WAYS, (False, True), (1, 2)):
        number, way, to_all, times = case
        name = f"{number.name}-{way}-{'all' if to_all else 'one'}-{times}"
        found.append(pytest.param(*case, id=name, marks=[] if case in FAST else [pytest.mark.slow]))
    return found


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize(("number", "way", "to_all", "times"), cases())
def test_a_run_that_is_asked_to_stop_saves_once_and_leaves_nobody(
    number: signal.Signals, way: str, to_all: bool, times: int, start: Callable[..., Any], tmp_path: Path
) -> None:
    process, others = start(WAYS[way])
    for _ in range(times):
        for pid in [*(others if to_all else []), process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
    code = process.wait(LIMIT)
    until(lambda: not any(map(alive, others)), "the end of all processes")
    said = (tmp_path / "said").read_text()
    killed = number == signal.SIGKILL or (number, way) == (signal.SIGUSR1, "torchrun")  # torchrun does not know it
    if killed:
        assert code == -number
    else:
        assert code == (1 if way == "torchrun" else 130), said
    if number == signal.SIGKILL:
        return
    assert said.count(WAYS[way].says) == 1, said
    if way not in ("compare", "chaos"):
        _, states = loader.load_any(tmp_path / "run" / "checkpoints")
        assert len(states) == 2
        assert len([*(tmp_path / "run" / "checkpoints").iterdir()]) == 1


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(stopping.time, "monotonic", lambda: now[0])
    return now


@pytest.mark.usefixtures("handlers")
def test_only_a_later_interrupt_is_a_second_one(clock: list[float]) -> None:
    with noting_interrupts() as interrupts:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)  # from a wrapper, say
        clock[0] += 2 * ONE_REQUEST
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
            signal.raise_signal(number)
        assert interrupts == [signal.SIGTERM]
        signal.raise_signal(signal.SIGINT)
        assert interrupts == [signal.SIGTERM, signal.SIGINT]


@pytest.mark.usefixtures("handlers")
def test_signals_are_handled_as_before_unless_one_has_come() -> None:
    before = [signal.getsignal(number) for number in stopping.SIGNALS]
    with noting_interrupts() as interrupts:
        pass
    assert [signal.getsignal(number) for number in stopping.SIGNALS] == before
    with noting_interrupts() as interrupts:
        signal.raise_signal(signal.SIGUSR1)
    signal.raise_signal(signal.SIGTERM)  # while the process ends
    assert interrupts == [signal.SIGUSR1]


@pytest.mark.usefixtures("handlers")
def test_a_terminal_that_hangs_up_is_a_request_unless_that_is_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # these tests may run under nohup
    with noting_interrupts() as interrupts:
        signal.raise_signal(signal.SIGHUP)
    assert interrupts == [signal.SIGHUP]
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
    with noting_interrupts() as interrupts:
        signal.raise_signal(signal.SIGHUP)
    assert interrupts == []
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize("watched", [None, "SWARMSTEP_LAUNCHER", "TORCHELASTIC_RUN_ID"])
def test_only_a_process_of_its_own_is_interrupted(
    watched: str | None, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    if watched:
        monkeypatch.setenv(watched, str(os.getppid()))
    stop = StopRequest()
    with stop:
        assert not stop.requested()
        signal.raise_signal(signal.SIGINT)
        assert stop.requested()
        clock[0] += 2 * ONE_REQUEST
        with contextlib.nullcontext() if watched else pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.usefixtures("handlers")
def test_a_worker_that_is_done_hears_no_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWARMSTEP_LAUNCHER", str(os.getppid()))
    with StopRequest():
        pass
    signal.raise_signal(signal.SIGTERM)  # from the launcher, which does not know yet


def test_an_orphan_of_torchrun_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a run")
    stop = StopRequest()
    assert not stop.requested()
    monkeypatch.setattr(os, "getppid", lambda: 1)
    assert stop.requested()


@pytest.mark.slow
def test_a_terminal_that_is_closed_stops_the_run_with_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ours, theirs = pty.openpty()
    take = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY); os.execv(sys.argv[1], sys.argv[1:])"
    process = subprocess.Popen(
        [sys.executable, "-c", take, *WAYS["sim"].command],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    os.set_blocking(ours, False)
    until((tmp_path / "run" / "metrics.jsonl").exists, "the training")
    os.close(ours)
    assert process.wait(LIMIT) == 130
    assert len([*(tmp_path / "run" / "checkpoints").iterdir()]) == 1
