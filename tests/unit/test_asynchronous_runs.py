"""`swarmstep train` with asynchronous methods, in virtual time: against rounds, stopped and resumed, refused."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

from runs import WORKLOADS as MADE
from runs import resolved, rows, same_run
from runs import train as train_in_rounds
from swarmstep.errors import Interrupted, NotFinite, UsageError
from swarmstep.train.asynchronous.local_steps import LocalSteps
from swarmstep.train.asynchronous.simulated import simulated
from swarmstep.train.job import Job

LINEAR = {"model": "linear", "every": 2, "steps": 16, "eval_every": 6}
SPEEDS = "1,2,4"


def train(fields: dict[str, Any], out: Path | None, **job: Any) -> dict[str, Any]:
    workload = MADE["classes"]()
    config = resolved(workload, {"workers": 3, **LINEAR, **fields})
    try:
        return simulated(config, workload, Job(out=out, quiet=True, keep=out is not None, **job))
    except Interrupted as error:
        return {"interrupted": str(error)}


def weights(folder: Path) -> torch.Tensor:
    return torch.cat([x.flatten() for x in load_file(folder / "model.safetensors").values()])


@pytest.mark.parametrize(
    "fields",
    [
        {"strategy": "asgrad", "settings": {"wait": "3"}},
        {"strategy": "quorum", "settings": {"quorum": "3"}},
        {"strategy": "quorum", "settings": {"quorum": "1", "grace": "1e-9"}},
    ],
    ids=str,
)
@pytest.mark.parametrize("training", [{}, {"schedule": "cosine", "warmup": 4, "clip": 0.5, "optimizer": "adamw"}])
def test_waiting_for_all_is_local_sgd(fields: dict[str, Any], training: dict[str, Any], tmp_path: Path) -> None:
    found = train({**fields, **training}, tmp_path / "found")
    expected = train_in_rounds({"strategy": "local-sgd", **LINEAR, **training}, tmp_path / "expected")
    assert torch.allclose(weights(tmp_path / "found"), weights(tmp_path / "expected"), rtol=1e-5, atol=1e-6)
    for name in ("test_loss", "validation_loss"):
        assert found[name] == pytest.approx(expected[name], rel=1e-5)
    assert found["rounds"] == expected["rounds"] == 8
    assert found["seconds"] == 16


@pytest.mark.parametrize(
    "fields",
    [
        {"strategy": "asgrad", "settings": {"assign": "shuffled", "outer_momentum": "0.5", "outer_every": "2"}},
        {"strategy": "asgrad", "settings": {"rule": "rescaled"}, "optimizer": "adamw", "jitter": 0.3},
        {"strategy": "quorum", "settings": {"grace": "1.5", "rule": "staleness"}, "disturb": "0:3-9:inf"},
        {"strategy": "layup", "optimizer": "sgd"},
    ],
    ids=str,
)
def test_a_stopped_run_goes_on_as_if_nothing_had_been(fields: dict[str, Any], tmp_path: Path) -> None:
    fields = {"speeds": SPEEDS, "steps": 40, **fields}
    whole = train(fields, tmp_path / "whole")
    for i, stop in enumerate((1, 9, 30)):
        assert "go on with" in train(fields, tmp_path / "parts", stop_at=stop, resume=i > 0)["interrupted"]
    train(fields, tmp_path / "parts", resume=True)
    same_run(tmp_path / "whole", tmp_path / "parts")
    assert whole["steps_taken"] == 40
    assert [row["step"] for row in rows(tmp_path / "whole") if row["kind"] == "evaluation"][-1] == 40


def test_a_worker_that_has_not_finished_since_the_stop_has_its_loss(tmp_path: Path) -> None:
    """At step 25 of all, the slow worker's last result is from before the stop."""
    fields = {"strategy": "asgrad", "speeds": "1,1,9", "steps": 30, "eval_every": 10}
    train(fields, tmp_path / "whole")
    assert "stopped at step 24" in train(fields, tmp_path / "parts", stop_at=24)["interrupted"]
    train(fields, tmp_path / "parts", resume=True)
    same_run(tmp_path / "whole", tmp_path / "parts")
    look = next(row for row in rows(tmp_path / "parts") if row["kind"] == "look")
    assert look["step"] == 25
    assert None not in look["losses"]


def test_nobody_waits_and_the_work_is_that_of_equal_workers(tmp_path: Path) -> None:
    summary = train({"strategy": "asgrad", "speeds": SPEEDS, "steps": 70}, tmp_path)
    did = summary["by_worker"]
    assert summary["seconds"] == pytest.approx(3 * 70 / (1 + 1 / 2 + 1 / 4), abs=4)
    assert [row["steps"] for row in did] == pytest.approx([120, 60, 30], abs=4)
    assert all(row["wait_seconds"] <= 8 for row in did)  # the last job is under way
    assert did[0]["staleness"] < did[1]["staleness"] < did[2]["staleness"]
    looks = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all(len(row["by_worker"]) == 3 for row in looks if row["kind"] == "look")


def test_a_disturbed_worker_costs_the_others_nothing() -> None:
    fields = {"strategy": "asgrad", "steps": 60}
    alone, disturbed = train(fields, None), train({**fields, "disturb": "2:5-35:6"}, None)
    assert alone["seconds"] == 60
    assert disturbed["seconds"] == pytest.approx(60 + 30 * (1 - 1 / 6) / 3, abs=2)  # its missing work, shared
    in_rounds = train_in_rounds(
        {"strategy": "local-sgd", **LINEAR, **fields | {"strategy": "local-sgd"}, "disturb": "2:5-35:6"}, None
    )
    assert in_rounds["seconds"] == pytest.approx(60 + 30 * (1 - 1 / 6), abs=2)


def test_the_learning_rate_follows_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fast worker takes more steps than the run has, at the rates of the run."""
    workload, seen = MADE["classes"](), []
    config = resolved(workload, {"workers": 2, **LINEAR, "strategy": "asgrad", "schedule": "cosine"})
    work = LocalSteps(config, workload)
    monkeypatch.setattr(work._optimizer, "step", seen.append)
    work(work.x, 0, 50, 6, {})  # its 51st job, when 6 results of 2 steps had counted: steps 7 and 8 of 16
    work(work.x, 0, 51, 40, {})
    expected = [0.05 * 0.5 * (1 + math.cos(math.pi * done / 16)) for done in (6, 7, 15, 15)]
    assert seen == pytest.approx(expected)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"strategy": "asgrad", "delay": 2}, "asgrad has no rounds: expected no --delay"),
        ({"strategy": "quorum", "when": "every:3"}, "quorum has no rounds: expected no --when"),
        ({"strategy": "asgrad", "codec": "int8"}, "expected no --codec"),
        ({"strategy": "asgrad", "fault": "sign:1"}, "expected no --fault"),
        ({"strategy": "asgrad", "balance": "steps", "speeds": SPEEDS}, "expected no --balance"),
        ({"strategy": "asgrad", "elastic": "local", "backend": "gloo"}, "expected no --elastic"),
        ({"strategy": "asgrad", "shards": "dealt"}, "expected --shards iid, found dealt"),
        ({"strategy": "asgrad", "backend": "nccl"}, "expected --backend sim or gloo"),
        ({"strategy": "asgrad", "settings": {"wait": "4"}}, "wait 1 to workers"),
        ({"strategy": "asgrad", "settings": {"rule": "x"}}, "rule: expected one of constant"),
        ({"strategy": "asgrad", "settings": {"inertia": "1"}}, "unknown setting 'inertia'.*one of rule"),
        ({"strategy": "quorum", "settings": {"quorum": "0"}}, "expected quorum 1 to workers"),
        ({"strategy": "quorum", "settings": {"grace": "-1"}}, "grace of at least 0"),
        ({"strategy": "asgrad", "every": 17}, "--every 17: a job is longer than the run; expected 1 to 16"),
        ({"strategy": "layup"}, "layup steps each layer by plain SGD: expected --optimizer sgd"),
        ({"strategy": "asgrad", "model": "small"}, "asynchronous methods do not average running statistics"),
    ],
    ids=str,
)  # fmt: skip
def test_what_does_not_go_is_refused_by_name(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        train(fields, None)


@pytest.mark.parametrize("strategy", ["asgrad", "quorum", "layup"])
def test_a_worker_whose_loss_is_not_finite_ends_the_run_by_name(strategy: str, tmp_path: Path) -> None:
    workload = MADE["classes"]()
    losses: list[int] = []

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        losses.append(0)
        return cross_entropy(outputs, targets) * (math.nan if len(losses) == 20 else 1.0)

    workload = dataclasses.replace(workload, loss=loss)
    config = resolved(
        workload, {"workers": 3, **LINEAR, "strategy": strategy, "optimizer": "sgd", "eval_every": 99}
    )
    with pytest.raises(NotFinite, match=r"worker \d.* is not finite"):
        simulated(config, workload, Job(out=tmp_path, quiet=True))
    assert not (tmp_path / "summary.json").exists()


def test_old_checkpoints_are_removed(tmp_path: Path) -> None:
    train({"strategy": "asgrad", "steps": 40, "checkpoint_every": 4}, tmp_path)
    left = sorted(int(folder.name.removeprefix("step-")) for folder in (tmp_path / "checkpoints").iterdir())
    assert left == [28, 32, 36]
