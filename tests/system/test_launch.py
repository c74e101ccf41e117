"""Real processes started by the command: stopped, killed, abandoned, and never left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from runs import rows, weights
from swarmstep.cli import main
from swarmstep.errors import CommError
from swarmstep.launch.processes import Outcome, Place, run_group
from swarmstep.launch.stopping import ONE_REQUEST

pytestmark = pytest.mark.usefixtures("forked")

LIMIT = 90.0  # seconds; a hang, not a measurement

# In step 10 every worker reports and waits for the file `go`.
FILE = """
import os, time
from pathlib import Path
import torch
from torch import nn
from swarmstep.workloads import Defaults, Examples, Workload

x = torch.randn(400, 8, generator=torch.Generator().manual_seed(0))
y = (x.sum(1) > 0).long()
here = Path(__file__).parent

class Waits(nn.Sequential):
    def forward(self, x):
        if self.training:
            self.steps = getattr(self, "steps", 0) + 1
            rank = os.environ.get("RANK", "sim")
            if self.steps == 10 and not (here / "go").exists():
                (here / f"ready-{rank}").touch()
                while not (here / "go").exists():
                    time.sleep(0.01)
            if self.steps == 12 and os.environ.get("RAISING_RANK") == rank:
                raise ValueError("no luck")  # line 22
        return super().forward(x)

workload = Workload(
    name="waits", train=Examples(x[:300], y[:300]), test=Examples(x[300:], y[300:]), classes=2,
    models={"mlp": lambda: Waits(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 2))},
    defaults=Defaults(lr=0.1, batch=8, every=4, steps=60),
)
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(FILE)
    for name in ("RANK", "WORLD_SIZE", "SWARMSTEP_TRACEBACK"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Return a function that starts the command; what still runs at the end of the test is ended."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str, program: tuple[str, ...] = ("-m", "swarmstep"), **more: str) -> Any:
        process = subprocess.Popen(
            [sys.executable, *program, *arguments],
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "TMPDIR": os.getcwd(), **more},  # a killed one leaves its scraps there
        )
        started.append(process)
        return process

    yield start
    for process in started:
        for pid in [*children(process.pid), process.pid]:
            if process.poll() is None:
                os.kill(pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdout, process.stderr):
            if pipe:
                pipe.close()


def children(parent: int) -> list[int]:
    """Return the processes that `parent` has started, oldest first: in rank order."""
    table = subprocess.run(["ps", "-axo", "ppid=,pid=,stat=,comm="], capture_output=True, text=True, check=True)
    found = [line.split() for line in table.stdout.splitlines()]
    return sorted(int(pid) for ppid, pid, stat, name in (row[:4] for row in found)
                  if int(ppid) == parent and "Z" not in stat and name != "ps")  # fmt: skip


def alive(pids: list[int]) -> list[int]:
    said = subprocess.run(
        ["ps", "-o", "pid=,stat=", "-p", ",".join(map(str, pids))], capture_output=True, text=True, check=False
    )
    return [int(line.split()[0]) for line in said.stdout.splitlines() if "Z" not in line.split()[1]]


def mine() -> list[int]:
    """Return the children of this process: the pool's ranks, if other tests have started it."""
    return children(os.getpid())


def until(true: Callable[[], Any], process: subprocess.Popen[str]) -> None:
    """Wait for something that `process` does."""
    deadline = time.monotonic() + LIMIT
    while not true():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.01)


def ready(process: subprocess.Popen[str], place: Path, *ranks: object) -> None:
    """Wait until the workers stand still in step 10."""
    until(lambda: all((place / f"ready-{rank}").exists() for rank in ranks), process)


def ended(process: subprocess.Popen[str]) -> list[str]:
    """Wait for the end and return the lines of standard error that are not progress."""
    _, err = process.communicate(timeout=LIMIT)
    return [line for line in err.splitlines() if not line.startswith("step ")]


GLOO = ("train", "mine.py:workload", "--backend", "gloo", "--workers", "2", "--out", "run")
SIM = ("train", "mine.py:workload", "--workers", "2")


def whole(place: Path) -> Path:
    """Return the folder of the uninterrupted run."""
    (place / "go").touch()
    assert main([*SIM, "--out", "whole"]) == 0
    return place / "whole"


def goes_on(place: Path) -> None:
    """Resume in process, and compare with the uninterrupted run."""
    assert main(["train", "--resume", "run", "--backend", "sim"]) == 0
    assert weights(place / "run") == weights(whole(place))
    assert rows(place / "run") == rows(place / "whole")


@pytest.mark.parametrize("options", [(), pytest.param(("-X", "utf8"), marks=pytest.mark.slow)])
def test_processes_and_simulation_give_the_same(options: tuple[str, ...], place: Path, start: Start) -> None:
    """With options of its own an interpreter starts all workers anew; without, a fork server has them ready."""
    train = ("train", "digits", "--steps", "30", "--workers", "2", "--strategy", "pso-ps", "--json")
    process = start(*train, "--backend", "gloo", "--out", "gloo", program=(*options, "-m", "swarmstep"))
    out, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, err
    assert main([*train, "--out", "sim"]) == 0
    assert weights(place / "sim") == weights(place / "gloo")
    assert rows(place / "sim") == rows(place / "gloo")
    summary = json.loads(out)
    assert (summary["backend"], summary["workers"], summary["rounds"]) == ("gloo", 2, 3)
    assert all(line.startswith("step ") for line in err.splitlines())


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_stopped_processes_go_on(number: signal.Signals, place: Path, start: Start) -> None:
    process = start(*GLOO)
    ready(process, place, 0, 1)
    workers = children(process.pid)
    process.send_signal(number)
    (place / "go").touch()
    assert ended(process) == [
        "swarmstep: stopped at step 25 of 60, on all ranks; go on with: swarmstep train --resume run"
    ]
    assert process.returncode == 130
    assert alive(workers) == []
    goes_on(place)


@pytest.mark.slow
def test_stopped_while_starting(place: Path, start: Start) -> None:
    """An interrupt that comes before the workers are ready for it stops them all the same."""
    (place / "go").touch()
    process = start(*GLOO)
    until(lambda: len(children(process.pid)) == 2, process)
    process.send_signal(signal.SIGINT)
    assert "stopped at step 25 of 60" in "".join(ended(process))
    assert process.returncode == 130
    goes_on(place)


@pytest.mark.slow
def test_the_second_interrupt_ends_at_once(place: Path, start: Start) -> None:
    process = start(*GLOO)
    ready(process, place, 0, 1)
    workers = children(process.pid)
    process.send_signal(signal.SIGTERM)
    time.sleep(1.5 * ONE_REQUEST)  # not a wait for anything: what comes sooner is the same request
    process.send_signal(signal.SIGINT)
    assert ended(process) == ["swarmstep: ended at once on request; nothing was saved since the last checkpoint"]
    assert process.returncode == 130
    assert alive(workers) == []


@pytest.mark.parametrize("rank", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_a_killed_worker_is_named_and_nothing_is_left(rank: int, place: Path, start: Start) -> None:
    process = start(*GLOO, "--checkpoint-every", "5")
    ready(process, place, 0, 1)
    until(lambda: len(list((place / "run").rglob("step-00000005/rank-*.pt"))) == 2, process)
    workers = children(process.pid)
    os.kill(workers[rank], signal.SIGKILL)
    (place / "go").touch()
    assert ended(process) == [
        f"swarmstep: rank {rank} was ended by SIGKILL; go on from the last checkpoint with --resume DIR"
    ]
    assert process.returncode == 5
    assert alive(workers) == []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the other rank may have begun to write a newer checkpoint
        assert main(["train", "--resume", "run", "--backend", "sim"]) == 0
    assert weights(place / "run") == weights(whole(place))


@pytest.mark.slow
def test_a_worker_that_stands_still_is_named(place: Path, start: Start) -> None:
    process = start(*GLOO, "--silence", "2")
    ready(process, place, 0, 1)
    workers = children(process.pid)
    os.kill(workers[1], signal.SIGSTOP)
    (place / "go").touch()
    (line,) = ended(process)
    assert "no heartbeat for 2 s from rank 1 while in gather" in line
    assert process.returncode == 5
    assert alive(workers) == []


def test_a_worker_that_fails_alone_is_the_one_that_is_heard(place: Path, start: Start) -> None:
    (place / "go").touch()
    process = start(*GLOO, RAISING_RANK="1")
    expected = f"swarmstep: ValueError: no luck ({place}/mine.py, line 22; SWARMSTEP_TRACEBACK=1 shows more)"
    assert ended(process) == [expected]
    assert process.returncode == 1


def test_workers_do_not_outlive_the_command(place: Path, start: Start) -> None:
    process = start(*GLOO)
    ready(process, place, 0, 1)
    workers = children(process.pid)
    process.kill()
    process.wait()
    (place / "go").touch()
    # Until rank 0, which writes to the same pipe, has ended; torch may tell of the store that is gone.
    lines = [line for line in ended(process) if line.startswith("swarmstep: ")]
    assert lines == ["swarmstep: stopped at step 25 of 60, on all ranks; go on with: swarmstep train --resume run"]
    deadline = time.monotonic() + LIMIT
    while alive(workers):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    goes_on(place)


def test_a_simulation_is_stopped_and_guards_its_folder(
    place: Path, start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    process = start(*SIM, "--out", "run")
    ready(process, place, "sim")
    assert main([*SIM, "--out", "run"]) == 4
    assert "run is in use: it holds config.json" in capsys.readouterr().err
    assert main(["train", "--resume", "run"]) == 4
    assert "run is in use by another process; wait for it, or end it" in capsys.readouterr().err
    process.send_signal(signal.SIGTERM)
    (place / "go").touch()
    assert "stopped at step 25 of 60" in "".join(ended(process))
    assert process.returncode == 130
    goes_on(place)


@pytest.mark.slow
def test_a_simulation_that_is_interrupted_twice_ends(place: Path, start: Start) -> None:
    process = start(*SIM, "--out", "run")
    ready(process, place, "sim")
    process.send_signal(signal.SIGTERM)
    time.sleep(1.5 * ONE_REQUEST)
    process.send_signal(signal.SIGINT)
    (place / "go").touch()
    assert "ended at once on request" in "".join(ended(process))
    assert process.returncode == 130


TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d",
            "--rdzv-endpoint", "localhost:0", "-m", "swarmstep")  # fmt: skip


@pytest.mark.slow
def test_stopped_under_torchrun(place: Path, start: Start) -> None:
    process = start("train", "mine.py:workload", "--out", "run", program=TORCHRUN)
    ready(process, place, 0, 1)
    process.send_signal(signal.SIGINT)
    (place / "go").touch()
    _, err = process.communicate(timeout=LIMIT)
    assert err.count("swarmstep: stopped at step ") == 1  # by rank 0; the rest is torchrun's
    assert main(["train", "--resume", "run", "--backend", "sim"]) == 0
    assert main(["train", "mine.py:workload", "--workers", "2", "--out", "whole"]) == 0
    assert weights(place / "run") == weights(place / "whole")


@pytest.mark.slow
def test_fast_sums_are_kept_by_a_resume(place: Path, start: Start) -> None:
    (place / "go").touch()
    process = start(*GLOO, "--strategy", "local-sgd", "--fast-sums", "--stop-at", "30")
    assert "stopped at step 30" in "".join(ended(process))
    process = start("train", "--resume", "run")
    assert ended(process) == []
    assert process.returncode == 0
    assert json.loads((place / "run" / "summary.json").read_text())["fast_sums"] is True


def test_a_group_that_nobody_watches(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (place / "go").touch()
    where = Place(environment={"RAISING_RANK": "1"})
    expected = f"ValueError: no luck ({place}/mine.py, line 22; SWARMSTEP_TRACEBACK=1 shows more)"
    assert run_group(GLOO, 2, where, interrupts=[]) == Outcome(1, expected)
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_processes_with_different_texts_do_not_begin(place: Path) -> None:
    for rank, word in enumerate(("one", "other")):
        (place / str(rank)).mkdir()
        (place / str(rank) / "own").write_text(word * 1000)
    train = ["train", "text", "--data", "own", "--model", "gpt-small", "--backend", "gloo", "--no-files"]
    where = Place(lambda rank, command: ["sh", "-c", f'cd {rank} && exec "$@"', "sh", *command])
    outcome = run_group(train, 2, where, interrupts=[])
    assert outcome.code == 5
    assert "the ranks disagree on corpus: rank 0 has " in outcome.message


def test_the_end_of_patience(place: Path) -> None:
    before, expected = (
        mine(),
        "the workers were not done after 0.5 s; a longer wait is set with --patience SECONDS",
    )
    assert run_group(GLOO, 2, interrupts=[], patience=0.5) == Outcome(5, expected)
    assert mine() == before


def test_who_was_ended_by_a_signal(place: Path) -> None:
    killed = Place(lambda rank, command: ["sh", "-c", "kill -KILL $$"])
    expected = "rank 0 was ended by SIGKILL, rank 1 was ended by SIGKILL"
    assert run_group(GLOO, 2, killed, interrupts=[]) == Outcome(5, expected, killed=True)


def test_a_group_that_is_stopped_twice_ends(place: Path) -> None:
    came, before = [signal.SIGINT, signal.SIGTERM], mine()
    assert run_group(GLOO, 2, interrupts=list(came)).code == 130
    assert mine() == before


def test_a_command_that_is_not_there() -> None:
    nowhere = Place(lambda rank, command: ["/nowhere/ip", *command])
    with pytest.raises(
        CommError, match=r"^/nowhere/ip: No such file or directory; the worker could not be started$"
    ):
        run_group(GLOO, 2, nowhere, interrupts=[])


@pytest.mark.slow
def test_a_plan_is_measured_between_processes(start: Start, place: Path) -> None:
    process = start("plan", "digits", "--measure", "--workers", "3", "--out", "plan.json")
    out, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, err
    plan = json.loads((place / "plan.json").read_text())
    assert (plan["workers"], plan["work"]["parameters"]) == (3, 8970)
    assert plan["link"]["rate"] > 1e8, "loopback"
    assert "smallest n with 95 % of the speed without rounds" in out
