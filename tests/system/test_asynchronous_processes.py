"""`swarmstep train --backend gloo` with asynchronous methods: real processes, killed, stopped and resumed."""

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
import torch
from safetensors.torch import load_file

from swarmstep.asynchronous import SERVER, Event, replay
from swarmstep.checkpoint import loader
from swarmstep.cli import main
from swarmstep.train.asynchronous.local_steps import LocalSteps
from swarmstep.train.asynchronous.methods import build_method
from swarmstep.train.run_folder import read_config
from swarmstep.workloads import load

pytestmark = pytest.mark.usefixtures("forked")

LIMIT = 120.0  # seconds; a hang, not a measurement
WORKLOADS = Path(__file__).parents[1] / "support" / "runs.py"
PACE = 0.02
METHODS = {"asgrad": ("--set", "rule=staleness"), "quorum": ("--set", "quorum=1", "--set", "grace=0.01")}


def command(folder: Path, strategy: str, *options: str, workload: str = f"{WORKLOADS}:classes") -> list[str]:
    return ["train", workload, "--strategy", strategy, *METHODS[strategy], "--backend", "gloo", "--workers", "2",
            "--model", "linear", "--every", "2", "--out", str(folder), *options]  # fmt: skip


def summary(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "summary.json").read_text()))


def check_record(folder: Path, results: int) -> None:
    """The recorded order of events, in one process, leads to the model that was written, bit for bit."""
    config = read_config(folder, done=True)
    work = LocalSteps(config, load(config.workload, None))
    taken, (saved,) = loader.load_any(folder / "checkpoints")
    state = replay(build_method(config, work), work.x, [Event(*event) for event in saved["order"]]).states[SERVER]
    assert taken == state.came == results
    written = load_file(folder / "model.safetensors")
    names = [name for name, _ in work.model.named_parameters()]
    assert torch.equal(state.x, torch.cat([written[name].flatten() for name in names]))
    did = summary(folder)["by_worker"]
    assert [row["steps"] for row in did] == [2 * entered for entered in state.entered]
    for row in did:  # a server that only comes back for the result has lost what was under way
        dropped = sum(worker == row["rank"] for worker, *_ in state.dropped)
        assert dropped <= row["dropped"] <= dropped + len(state.under_way[row["rank"]])


def test_a_run_is_its_record_replayed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(command(tmp_path / "run", "asgrad", "--steps", "14", "--json")) == 0
    out, err = capfd.readouterr()
    assert json.loads(out) == summary(tmp_path / "run")
    assert "step 14/14" in err
    check_record(tmp_path / "run", results=14)


@pytest.mark.slow
def test_a_run_that_is_to_stop_says_so_and_goes_on(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    options = ("--steps", "60", "--pace", str(PACE))
    assert main(command(run, "quorum", *options, "--stop-at", "40")) == 130
    assert f"stopped at step 40 of 60; go on with: swarmstep train --resume {run}" in capfd.readouterr().err
    assert not (run / "summary.json").exists()
    resume = ["train", "--resume", str(run), "--pace", str(PACE)]
    assert main([*resume, "--stop-at", "40"]) == 2
    assert "--stop-at: expected a step from 41 to 60, found 40" in capfd.readouterr().err
    assert main(resume) == 0
    check_record(run, results=60)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["kind"] == "look"] == [25, 40, 50, 60]
    for row in summary(run)["by_worker"]:
        assert row["compute_seconds"] >= PACE * row["steps"]  # with those before the stop


class Run:
    """`swarmstep train`: the supervisor, and the processes of the nodes."""

    def __init__(self, folder: Path, arguments: list[str]) -> None:
        self.folder, self.errors = folder, folder.with_suffix(".errors")
        with self.errors.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "swarmstep", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=file,
            )

    def said(self) -> str:
        return self.errors.read_text()

    def until(self, true: Callable[[], Any], what: str) -> None:
        deadline = time.monotonic() + LIMIT
        while not true():
            assert time.monotonic() < deadline, (f"waited in vain for {what}", self.said())
            assert self.process.poll() is None, (f"ended without {what}", self.said())
            time.sleep(0.02)

    def nodes(self) -> list[int]:
        """Return the processes of the nodes in the order of their start: at first 0, 1 and the server."""
        return [node for fork_server in children(self.process.pid) for node in children(fork_server)]

    def looks(self) -> int:
        file = self.folder / "metrics.jsonl"
        return file.read_text().count('"look"') if file.exists() else 0

    def kill(self, node: int) -> None:
        """Kill a process of a node, and wait until the run goes on with another."""
        looks, lost = self.looks(), self.said().count("is lost")
        os.kill(node, signal.SIGKILL)
        self.until(lambda: self.said().count("is lost") > lost, "the loss")
        self.until(lambda: self.looks() > looks + 1 and len(self.nodes()) == 3, "the next")


def children(pid: int) -> list[int]:
    try:
        found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [int(child) for child in found if Path(f"/proc/{child}/stat").read_text().split()[2] not in "ZX"]
    except OSError:
        return []


@pytest.fixture
def start() -> Iterator[Callable[..., Run]]:
    runs: list[Run] = []

    def start(folder: Path, arguments: list[str]) -> Run:
        runs.append(Run(folder, arguments))
        return runs[-1]

    yield start
    for run in runs:
        run.process.kill()  # its nodes end with it
        run.process.wait(LIMIT)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [*METHODS])
def test_a_worker_and_the_server_are_killed(strategy: str, start: Callable[..., Run], tmp_path: Path) -> None:
    steps = 600
    options = ("--steps", str(steps), "--pace", str(PACE), "--checkpoint-every", "10", "--eval-every", "50")
    run = start(tmp_path / "run", command(tmp_path / "run", strategy, *options))
    run.until(lambda: run.looks() > 1 and len(run.nodes()) == 3, "two looks")
    worker, _, server = run.nodes()
    run.kill(worker)
    run.kill(server)
    assert run.process.wait(LIMIT) == 0, run.said()
    said = run.said()
    assert "worker 0.0 is lost: worker 0.0 was ended by SIGKILL" in said
    assert "worker 2.0 is lost: worker 2.0 was ended by SIGKILL" in said
    check_record(run.folder, results=steps)
    found = summary(run.folder)
    assert sum(row["dropped"] for row in found["by_worker"]) >= 1
    for row in found["by_worker"]:
        # Also of the process that was killed, up to the last look.
        assert row["compute_seconds"] >= PACE * (row["steps"] - 50)
    rows = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    looks = [row["step"] for row in rows if row["kind"] == "look"]
    assert looks == sorted({*looks})


@pytest.mark.slow
def test_ctrl_c_once_and_twice(start: Callable[..., Run], tmp_path: Path) -> None:
    for times in (1, 2):
        folder = tmp_path / str(times)
        run = start(folder, command(folder, "asgrad", "--steps", "100000", "--pace", str(PACE)))
        run.until(run.looks, "a look")
        nodes = run.nodes()
        for _ in range(times):
            run.process.send_signal(signal.SIGINT)
            time.sleep(1.0)  # as a second request, not one that was sent twice
        assert run.process.wait(LIMIT) == 130
        assert "stopped at step" in run.said()
        assert not any(Path(f"/proc/{node}").exists() for node in nodes)
        loader.load_any(folder / "checkpoints")


OWN = """
import os
import pathlib
import signal
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from swarmstep.workloads import Defaults, Examples, Workload

x = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
y = (x.sum(1) > 0).long()
here = pathlib.Path(__file__).parent

def make(loss):
    return Workload("own", Examples(x[:60], y[:60]), Examples(x[60:], y[60:]), {"linear": lambda: nn.Linear(4, 2)},
                    Defaults(batch=4, every=2, steps=20, eval_every=1000), classes=2, loss=loss)

def killed(outputs, targets):
    if len(outputs) > 30 and not (here / "killed").exists():  # the first evaluation on the test set
        (here / "killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return cross_entropy(outputs, targets)

def nan(outputs, targets):
    return cross_entropy(outputs, targets) * (float("nan") if len(outputs) == 4 else 1)

def broken(outputs, targets):
    if len(outputs) > 30:
        raise RuntimeError("no score")
    return cross_entropy(outputs, targets)

killed, nan, broken = make(killed), make(nan), make(broken)
"""


@pytest.mark.slow
def test_a_server_that_is_killed_while_it_evaluates_the_result(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    assert main(command(tmp_path / "run", "asgrad", workload=f"{tmp_path}/own.py:killed")) == 0
    assert (tmp_path / "killed").exists()
    assert summary(tmp_path / "run")["steps_taken"] == 20
    check_record(tmp_path / "run", results=20)


@pytest.mark.slow
def test_a_result_that_is_not_finite_ends_the_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "own.py").write_text(OWN)
    assert main(command(tmp_path / "run", "quorum", workload=f"{tmp_path}/own.py:nan")) == 6
    assert "server, step 0: the result of job 0 of worker" in capfd.readouterr().err
    _, (saved,) = loader.load_any(tmp_path / "run" / "checkpoints")
    assert saved["server"]["x"].isfinite().all()


@pytest.mark.slow
def test_an_evaluation_that_fails_ends_the_run_soon(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "own.py").write_text(OWN)
    options = ("--steps", "1000000", "--eval-every", "10")
    assert main(command(tmp_path / "run", "asgrad", *options, workload=f"{tmp_path}/own.py:broken")) == 1
    assert "no score" in capfd.readouterr().err


@pytest.mark.slow
def test_what_has_no_place_for_asynchronous_processes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "swarmstep"]
    train = ["train", f"{WORKLOADS}:classes", "--strategy", "asgrad", "--model", "linear", "--no-files"]
    assert subprocess.run([*torchrun, *train], check=False, timeout=LIMIT).returncode == 1
    assert "asgrad starts its own processes: expected swarmstep train by itself" in capfd.readouterr().err


LAYUP = ("--strategy", "layup", "--backend", "gloo", "--optimizer", "sgd", "--lr", "0.05", "--model", "linear")


@pytest.mark.slow
def test_without_a_server_any_worker_may_be_killed(start: Callable[..., Run], tmp_path: Path) -> None:
    """Worker 1, and worker 0, which records the run; the sums of steps hold, and the model has learnt."""
    folder, steps = tmp_path / "run", 900
    options = ("--workers", "3", "--steps", str(steps), "--eval-every", "100", "--pace", str(PACE))
    run = start(folder, ["train", f"{WORKLOADS}:classes", *LAYUP, *options, "--out", str(folder)])
    run.until(lambda: run.looks() > 1 and len(run.nodes()) == 3, "two looks")
    recorder, worker, _ = run.nodes()
    run.kill(worker)
    run.kill(recorder)
    assert run.process.wait(LIMIT) == 0, run.said()
    said = run.said()
    assert "worker 1.0 is lost: worker 1.0 was ended by SIGKILL" in said
    assert "worker 0.0 is lost: worker 0.0 was ended by SIGKILL" in said
    found = summary(folder)
    assert found["steps_taken"] == steps
    assert sum(row["steps"] for row in found["by_worker"]) == pytest.approx(3 * steps, abs=75)  # the looks' counts
    assert found["test_accuracy"] > 0.8  # chance is a third
    assert (folder / "model.safetensors").exists()


@pytest.mark.slow
def test_what_workers_without_a_server_cannot_do(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    train = ["train", f"{WORKLOADS}:classes", *LAYUP, "--workers", "2", "--out", str(tmp_path / "run")]
    assert main([*train, "--steps", "40", "--stop-at", "20"]) == 2
    assert "--stop-at: workers without a server write no checkpoint" in capfd.readouterr().err
    assert main([*train, "--steps", "40"]) == 0
    assert summary(tmp_path / "run")["steps_taken"] == 40
