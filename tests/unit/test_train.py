"""Runs: stopped and resumed equals uninterrupted, sim equals gloo, and the figures they report."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from examples import few
from runs import MODELS, REAL, WORKLOADS, report, resolved, rows, same_run, train
from swarmstep import STRATEGIES, Comm, simulate
from swarmstep.errors import CheckpointError, NotFinite, UsageError
from swarmstep.train.build import resolve
from swarmstep.train.config import Config
from swarmstep.train.evaluate import Score, evaluate_together, named_scores
from swarmstep.train.feed import Feed
from swarmstep.train.job import Job
from swarmstep.train.lockstep_coordinator import simulated
from swarmstep.workloads import Examples, load
from whole_runs import KINDS, fast_if, fast_ones

EVERY_STRATEGY = sorted(STRATEGIES)
FIELDS = [
    "strategy",
    "workload",
    "workers",
    "every",
    "steps",
    "seed",
    "backend",
    "test_accuracy",
    "test_loss",
    "train_loss",
    "rounds",
    "bytes_sent_per_worker",
    "bytes_received_per_worker",
    "seconds",
    "sync_seconds",
]


def stop_and_resume(fields: dict[str, Any], out: Path, *stops: int, name: str = "classes") -> None:
    for i, stop in enumerate(stops):
        summary = train(fields, out, name, stop_at=stop, resume=i > 0)
        assert f"stopped at step {stop} of " in summary["interrupted"]
        assert not (out / "model.safetensors").exists()
    train(fields, out, name, resume=True)


@pytest.mark.parametrize("strategy", fast_ones((*KINDS, "synchronous"), EVERY_STRATEGY))
def test_a_stopped_run_goes_on_as_if_nothing_had_been(strategy: str, tmp_path: Path) -> None:
    fields = {"strategy": strategy, "seed": 3}
    train(fields, tmp_path / "whole")
    stop_and_resume(fields, tmp_path / "parts", 3, 8, 13)
    same_run(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize(
    "fields",
    [
        {"fault": "noise:1:0.01"},
        fast_if(False, {"fault": "sign:2", "strategy": "local-sgd"}),
        fast_if(False, {"fault": "sign:1", "strategy": "synchronous"}),
        fast_if(False, {"fault": "noise:3:0.1", "strategy": "synchronous"}),
        fast_if(False, {"when": "warmup:6,every:3"}),
        {"strategy": "pso-ps", "settings": {"best": "historical", "fitness": "probe", "random": "weight"}},
        {"optimizer": "adamw", "schedule": "cosine", "weight_decay": 0.1},
        {"optimizer": "muon", "strategy": "diloco", "clip": 0.5, "warmup": 8, "weight_decay": 0.1},
        {"shards": "dirichlet:0.5+bad-labels:1", "model": "tied"},
        fast_if(False, {"shards": "contiguous"}),
        fast_if(False, {"shards": "seldp", "model": "half", "batch": 30}),
        fast_if(False, {"workers": 1}),
        {"delay": 3, "codec": "int8", "strategy": "local-sgd"},
        {"delay": 2, "fragments": 2, "mix": 0.5, "strategy": "diloco", "fault": "noise:1:0.01"},
        {"delay": 2, "eager": True, "strategy": "diloco"},
        {"delay": 2, "when": "change:0.05", "strategy": "local-sgd", "codec": "bfloat16"},
    ],
    ids=str,
)
def test_options_survive_a_stop(fields: dict[str, Any], tmp_path: Path) -> None:
    train(fields, tmp_path / "whole")
    stop_and_resume(fields, tmp_path / "parts", 5)
    same_run(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize(
    ("batch", "looked_at"), [(1, 32), (7, 32), (8, 32), (16, 64), (31, 124), (32, 128), (33, 128), (500, 128)]
)
def test_a_probe_costs_two_steps_within_its_bounds(batch: int, looked_at: int) -> None:
    x = torch.arange(6000.0).view(3000, 2)
    many = Examples(x, torch.zeros(3000, dtype=torch.int64))
    workload = dataclasses.replace(WORKLOADS["classes"](), train=many, augment=None)
    feed = Feed(resolved(workload, {"batch": batch}), workload, 0, torch.device("cpu"))
    seen: list[torch.Tensor] = []

    class Looking(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(x)
            return super().forward(x)

    for step in (1, 2):
        feed.probe(Looking(2, 3), step)
    assert [len(inputs) for inputs in seen] == [looked_at, looked_at]
    assert not seen[0].equal(seen[1])
    assert feed.probe_cost == looked_at / (2 * batch)


def test_contiguous_shards_are_stretches_of_what_is_stored_after_holding_out() -> None:
    x = torch.arange(3000.0).view(3000, 1)
    many = Examples(x, torch.zeros(3000, dtype=torch.int64))
    workload = dataclasses.replace(WORKLOADS["classes"](), train=many, augment=None)
    config = resolved(workload, {"batch": 100, "shards": "contiguous", "workers": 3})
    seen: list[set[float]] = []
    for rank in range(3):
        feed = Feed(config, workload, rank, torch.device("cpu"))
        seen.append({i for step in range(1, 12) for i in feed.batch(step)[0].flatten().tolist()})
    assert max(seen[0]) < min(seen[1]) <= max(seen[1]) < min(seen[2])
    assert sum(map(len, seen)) == 3000 - 150 - 300  # without the probe's 5 % and the validation's 10 %


@pytest.mark.parametrize("fields", [{"strategy": "diloco"}, {"shards": "contiguous+bad-labels:1"}], ids=str)
def test_text_survives_a_stop(fields: dict[str, Any], tmp_path: Path) -> None:
    train(fields, tmp_path / "whole", "text")
    stop_and_resume(fields, tmp_path / "parts", 2, 7, name="text")
    same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_run_does_not_go_on_with_another_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train({}, tmp_path, "text", stop_at=5)
    other = dataclasses.replace(WORKLOADS["text"](), corpus="1" * 64)
    monkeypatch.setitem(WORKLOADS, "text", lambda: other)
    with pytest.raises(CheckpointError, match=f"corpus: expected SHA-256 {'1' * 64}, found {'0' * 64}"):
        train({}, tmp_path, "text", resume=True)


def test_measures_of_the_loss_are_in_the_summary_and_in_each_evaluation(tmp_path: Path) -> None:
    summary = train({}, tmp_path / "run", "text")
    for part in ("test", "validation"):
        assert summary[f"{part}_bits_per_byte"] == summary[f"{part}_loss"] / math.log(2)
        assert 0 <= summary[f"{part}_accuracy"] <= 1
    assert summary["corpus"] == "0" * 64
    evaluations = [row for row in rows(tmp_path / "run") if row["kind"] == "evaluation"]
    assert all(row["test_bits_per_byte"] == row["test_loss"] / math.log(2) for row in evaluations)
    assert "test_bits_per_byte" not in train({}, None)


@pytest.mark.parametrize("identical", [True, False])
def test_averages_are_means_over_all_examples(identical: bool) -> None:
    """In batches and parts of unequal size; where the models differ, the mean of the workers' own."""
    inputs = torch.rand(1103, 6, generator=torch.Generator().manual_seed(0))
    workload = dataclasses.replace(WORKLOADS["classes"](), averages={"size": lambda out: out.abs().mean()})
    examples = Examples(inputs, torch.zeros(1103, dtype=torch.int64))
    torch.manual_seed(0)
    models = [torch.nn.Linear(6, 3) for _ in range(2)]

    def work(comm: Comm) -> Score:
        model = models[0 if identical else comm.rank]
        return evaluate_together(model, workload, examples, comm, identical=identical)

    one, two = simulate(work, 2)
    assert one == two
    with torch.no_grad():
        sizes = [float(model(inputs).abs().double().mean()) for model in models]
    expected = sizes[0] if identical else sum(sizes) / 2
    assert named_scores(workload, "test", one)["test_size"] == pytest.approx(expected, rel=1e-6)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    train({"steps": 60}, folder)  # beyond two looks of the workers at each other
    return folder


@pytest.mark.slow
@few
@given(stops=st.sets(st.integers(1, 59), min_size=1, max_size=3))
def test_any_stops(stops: set[int], whole: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("parts") / "run"
    stop_and_resume({"steps": 60}, folder, *sorted(stops))
    same_run(whole, folder)


def test_going_back_to_an_older_checkpoint_repeats_the_rows(whole: Path, tmp_path: Path) -> None:
    """A crash after the checkpoint: the rows written since are there, one of them cut short."""
    stop_and_resume({"steps": 60, "checkpoint_every": 20}, tmp_path / "a", 30)
    folder = tmp_path / "b"
    train({"steps": 60}, folder, stop_at=30)
    lines = (tmp_path / "a" / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines)[:-30])
    train({"steps": 60}, folder, resume=True)
    same_run(whole, folder)


def test_the_summary_holds_what_the_issue_asks_for(whole: Path) -> None:
    summary = json.loads((whole / "summary.json").read_text())
    assert [name for name in FIELDS if name not in summary] == []
    assert summary["rounds"] == 15
    assert 0 <= summary["test_accuracy"] <= 1
    assert 0 < summary["sync_seconds"] < summary["seconds"]
    kinds = [row["kind"] for row in rows(whole)]
    assert (kinds.count("round"), kinds.count("look"), kinds.count("evaluation")) == (15, 12, 12)


def test_a_look_at_all_workers_waits_until_a_round_has_landed(tmp_path: Path) -> None:
    """Each 25 steps, but behind what a round sends it would wait for the round; at the latest at the next one."""
    fields = {"strategy": "local-sgd", "steps": 120, "every": 20, "delay": 8, "eval_every": 1000}

    def looks(folder: Path) -> list[int]:
        return [row["step"] for row in rows(folder) if row["kind"] == "look"]

    train(fields, tmp_path / "whole")
    assert looks(tmp_path / "whole") == [28, 50, 75, 108, 120]
    stop_and_resume(fields, tmp_path / "parts", 27, 104)
    assert looks(tmp_path / "parts") == [28, 50, 75, 108, 120]
    train({**fields, "every": 60, "delay": 60}, tmp_path / "always")
    assert looks(tmp_path / "always") == [25, 50, 100, 120]


@pytest.mark.parametrize("workers", [1, 2, pytest.param(17, marks=pytest.mark.slow)])
def test_bytes_are_the_formula(workers: int) -> None:
    """P = 6*3 + 3 elements of 4 bytes; every round calls the roll, 7 float64 from each worker."""
    steps, p = 8, 21

    def sent(strategy: str, **fields: Any) -> tuple[float, float]:
        wish = {"strategy": strategy, "model": "linear", "workers": workers, "steps": steps, "batch": 2, **fields}
        summary = train(wish, None)
        assert summary["bytes_sent_per_worker"] == summary["bytes_received_per_worker"]
        return summary["rounds"], summary["bytes_sent_per_worker"]

    roll, share = 56 * (workers - 1), (workers - 1) / workers
    assert sent("independent") == (0, 0)
    assert sent("pso-ps", every=4) == (2, pytest.approx(2 * (roll + share * 4 * p)))
    assert sent("local-sgd", every=2) == (4, pytest.approx(4 * (roll + share * 2 * 4 * (p + 1))))
    assert sent("synchronous") == (steps, pytest.approx(steps * (roll + share * 2 * 4 * (p + 1))))


@pytest.mark.parametrize("strategy", ["pso-ps", "local-sgd", "synchronous", "independent"])
@pytest.mark.parametrize("model", ["tied", "half"])
def test_shared_mixed_and_frozen_weights(strategy: str, model: str, tmp_path: Path) -> None:
    summary = train({"strategy": strategy, "model": model}, tmp_path / "run")
    assert math.isfinite(summary["test_loss"])
    saved = load_file(tmp_path / "run" / "model.safetensors")
    if model == "tied":
        assert len({"first.weight", "second.weight"} & set(saved)) == 1
    else:
        assert saved["body.weight"].dtype == torch.bfloat16
        assert saved["head.weight"].dtype == torch.float32


def test_a_task_without_accuracy(tmp_path: Path) -> None:
    summary = train({"steps": 40}, tmp_path / "run", name="regression")
    assert math.isnan(summary["test_accuracy"])
    assert summary["test_loss"] < 60
    assert report(tmp_path / "run")["test_accuracy"] is None


def test_stopping_at_the_last_step_is_finishing() -> None:
    assert "test_loss" in train({}, None, stop_at=14)


@pytest.mark.parametrize(("stop", "valid"), [(0, "1 to 14"), (15, "1 to 14"), (-1, "1 to 14")])
def test_stop_out_of_range(stop: int, valid: str) -> None:
    with pytest.raises(UsageError, match=f"--stop-at: expected a step from {valid}, found {stop}"):
        train({}, None, stop_at=stop)


def test_stop_behind_the_run(tmp_path: Path) -> None:
    train({}, tmp_path / "run", stop_at=9)
    with pytest.raises(UsageError, match="from 10 to 14, found 9"):
        train({}, tmp_path / "run", stop_at=9, resume=True)


@pytest.mark.parametrize(("field", "value"), [("lr", 0.1), ("seed", 1), ("strategy", "local-sgd"), ("batch", 5)])
def test_a_checkpoint_of_other_settings_is_refused(field: str, value: Any, tmp_path: Path) -> None:
    train({}, tmp_path / "run", stop_at=2)
    with pytest.raises(CheckpointError, match=f"{field}: expected {value!r}, found"):
        train({field: value}, tmp_path / "run", resume=True)


def test_a_model_that_changed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the file of one's own workload was edited in between."""
    train({"model": "linear"}, tmp_path / "run", stop_at=2)
    monkeypatch.setitem(MODELS, "linear", lambda: torch.nn.Linear(6, 3, bias=False))
    with pytest.raises(CheckpointError, match=r"does not fit this run: .*bias"):
        train({"model": "linear"}, tmp_path / "run", resume=True)


@pytest.mark.parametrize("strategy", ["local-sgd", "pso-ps", "synchronous"])
@pytest.mark.parametrize("step", [2, 14])
def test_weights_that_are_not_finite_end_the_run_and_name_the_rank(strategy: str, step: int) -> None:
    with pytest.raises(NotFinite, match=r"of rank 1, 2 (is|are) not finite"):
        train({"strategy": strategy, "fault": f"nan:2:{step}"}, None)


@pytest.mark.parametrize("strategy", EVERY_STRATEGY)
def test_every_strategy_meets_a_nan_with_an_error_or_contains_it(strategy: str) -> None:
    contains = strategy in STRATEGIES and STRATEGIES[strategy].contains_not_finite
    fields = {"strategy": strategy, "fault": "nan:1:6", "workers": 4}
    if not contains:
        with pytest.raises(NotFinite, match="of rank 3"):
            train(fields, None)
    elif strategy != "independent":  # which reports the mean of the workers' own scores
        assert math.isfinite(train(fields, None)["test_loss"])


def test_real_data_through_real_loaders(tmp_path: Path) -> None:
    if not (REAL / "MNIST" / "raw").is_dir():
        pytest.skip(f"no real MNIST in {REAL}")
    from swarmstep.train.build import resolve
    from swarmstep.train.config import Config
    from swarmstep.train.job import Job
    from swarmstep.train.lockstep_coordinator import simulated

    workload = load("mnist", REAL)
    wish = resolve(Config("mnist", workers=2, steps=30, every=8, model="mlp"), workload)
    summary = simulated(wish, workload, Job(quiet=True, keep=False))
    assert summary["rounds"] == 3
    assert summary["train_loss"] < 2.2


def test_a_worker_with_bad_labels_is_named_in_metrics_and_summary(tmp_path: Path) -> None:
    workload = load("digits")
    config = resolve(Config("digits", shards="bad-labels:1", steps=60, every=4), workload)
    summary = simulated(config, workload, Job(out=tmp_path / "run", quiet=True))
    (worker,) = summary["distrusted"]
    assert worker["rank"] == 3
    by = worker["why"].removeprefix("leaving it out lowers the probe's loss by ").removesuffix(" %")
    assert 0 < float(by) < 100
    rounds = [row for row in rows(tmp_path / "run") if row["kind"] == "round"]
    since = [row["step"] for row in rounds if [d["rank"] for d in row["distrusted"]] == [3]]
    assert since[0] == worker["since"] < 60
    assert [row["participants"] for row in rounds if row["step"] in since] == [3] * len(since)
    assert summary["probe_seconds"] > 0
