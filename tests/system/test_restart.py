"""`--elastic torchrun`: torchrun starts all workers again, and they go on from the last checkpoint."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from swarmstep.cli import main

pytestmark = pytest.mark.usefixtures("forked")

SOON = 90.0  # seconds; far beyond what any wait here should take


def agent(folder: Path, *options: str, steps: int = 400) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--monitor-interval", "0.1", "--max-restarts", "3"]
    train = ["-m", "swarmstep", "train", "digits", "--elastic", "torchrun", "--steps", str(steps), "--every", "8"]
    more = ["--checkpoint-every", "16", "--pace", "0.02", "--eval-every", str(steps), "--out", str(folder / "run")]
    folder.mkdir(exist_ok=True)
    with (folder / "stderr").open("w") as file:
        return subprocess.Popen(
            [*command, *options, *train, *more],
            env={**os.environ, "OMP_NUM_THREADS": "1", "SWARMSTEP_SECRET": "a secret of this test only"},
            stdout=subprocess.DEVNULL,
            stderr=file,
            text=True,
            start_new_session=True,
        )


def end(process: subprocess.Popen[str]) -> None:
    """End an agent; its workers end with it, as they are asked to by the agent."""
    if process.poll() is None:
        process.terminate()
        process.wait(SOON)


def wait_for(seen: Any, what: str) -> Any:
    deadline = time.monotonic() + SOON
    while time.monotonic() < deadline:
        found = seen()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError(f"waited in vain for {what}")


def saved(folder: Path, ranks: int, above: int = 0) -> int:
    """Return the newest step above a given one of which so many ranks have a checkpoint, 0 if there is none."""
    steps = [
        int(path.name[5:])
        for path in (folder / "run" / "checkpoints").glob("step-*")
        if len(list(path.glob("rank-*.pt"))) == ranks
    ]
    return max((step for step in steps if step > above), default=0)


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(pid) for pid in children]


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]


def test_a_killed_worker_costs_the_steps_since_the_checkpoint(tmp_path: Path) -> None:
    process = agent(tmp_path, "--nproc-per-node", "2", steps=160)
    try:
        wait_for(lambda: saved(tmp_path, 2, above=31), "a checkpoint of two")
        os.kill(workers_of(process)[0], signal.SIGKILL)  # rank 0
        assert process.wait(SOON) == 0
    finally:
        end(process)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["steps_taken"], summary["workers"], summary["rounds"]) == (160, 2, 20)
    rounds = [row["step"] for row in rows(tmp_path) if row["kind"] == "round"]
    assert rounds == list(range(8, 161, 8))  # each once: those after the checkpoint were taken back
    whole = ["train", "digits", "--workers", "2", "--steps", "160", "--every", "8", "--eval-every", "160"]
    assert main([*whole, "--out", str(tmp_path / "whole")]) == 0
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("run", "whole"))
    assert all(ours[name].equal(theirs[name]) for name in theirs)  # as if nothing had happened, bit for bit


@pytest.mark.slow
def test_the_world_may_be_smaller_when_they_are_started_again(tmp_path: Path) -> None:
    """What an agent with --nnodes=MIN:MAX does when a machine is gone: the same command, in a smaller world."""
    first = agent(tmp_path, "--nproc-per-node", "3")
    try:
        wait_for(lambda: saved(tmp_path, 3, above=31), "a checkpoint of three")
    finally:
        end(first)
    second = agent(tmp_path, "--nproc-per-node", "2")
    try:
        assert second.wait(SOON) == 0
    finally:
        end(second)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["steps_taken"], summary["workers"], summary["rounds"]) == (400, 2, 50)
    assert [row["step"] for row in rows(tmp_path) if row["kind"] == "round"] == list(range(8, 401, 8))


def test_it_says_what_it_needs(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["train", "digits", "--elastic", "torchrun", "--out", str(tmp_path / "run")]) == 2
    assert "--elastic torchrun: expected to be started by torchrun, and --out DIR" in capsys.readouterr().err
