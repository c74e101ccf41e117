"""Runs on different texts are not put together, and are told apart wherever they meet."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from made_results import made_cell
from runs import WORKLOADS, resolved
from swarmstep.cli import main
from swarmstep.compare import results
from swarmstep.compare.analysis import analyse
from swarmstep.compare.methods import parse
from swarmstep.compare.plan import TaskGroup, Tuning
from swarmstep.compare.results import Cell, Results, check_corpora
from swarmstep.compare.runner import Runner
from swarmstep.errors import DataError, UsageError
from swarmstep.launch.processes import Place
from swarmstep.train.join import SETTINGS, Guest, _marks, check_own

ONE, OTHER = "1" * 64, "2" * 64
SMALL = ("--model", "gpt-small", "--workers", "2", "--every", "2")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("one", "other"):
        Path(name).write_text(f"{name} text, of which there is enough. " * 200)
    return tmp_path


def test_a_text_of_ones_own_is_trained_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "text", "--data", "one", *SMALL, "--steps", "2", "--no-files"]) == 0
    assert ", test bits per byte " in capsys.readouterr().out


def test_a_run_goes_on_with_its_text_wherever_that_lies(capsys: pytest.CaptureFixture[str]) -> None:
    run = ["train", "text", "--data", "one", *SMALL, "--steps", "4", "--out", "run"]
    assert main([*run, "--stop-at", "2"]) == 130
    capsys.readouterr()
    assert main(["train", "--resume", "run", "--data", "other"]) == 4
    said = capsys.readouterr().err.splitlines()[-1]
    assert "checkpoint: corpus: expected SHA-256" in said
    assert "the run was trained on another text" in said
    Path("one").rename("moved")
    assert main(["train", "--resume", "run", "--data", "moved"]) == 0
    assert len(json.loads(Path("run/summary.json").read_text())["corpus"]) == 64


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ("--data none", 3, "none: cannot be read"),
        ("--data one --shards classes:2", 2, "shards 'classes:2' need examples of one class each"),
        ("--data one --shards dirichlet:1", 2, "shards 'dirichlet:1' need examples of one class each"),
    ],
)
def test_what_does_not_go(arguments: str, code: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "text", *arguments.split(), *SMALL]) == code
    assert said in capsys.readouterr().err


# Comparisons


def cell(corpus: str | None, seed: int = 0, **changes: Any) -> Cell:
    made = made_cell("swarm", 4, seed, workload="text", **changes)
    return dataclasses.replace(made, environment={**made.environment, **({"corpus": corpus} if corpus else {})})


def test_a_report_refuses_runs_on_different_texts() -> None:
    together = [Results({}, (cell(ONE),)), Results({}, (cell(OTHER, 1),))]
    with pytest.raises(
        DataError, match=rf"text: cell \w+ was run on .* SHA-256 {OTHER}, others on {ONE}; compare"
    ):
        analyse(together)
    (section,) = analyse([Results({}, (cell(ONE), cell(ONE, 1)))])
    assert section.environment["corpus"] == ONE


def test_failed_cells_and_other_workloads_have_nothing_to_disagree_on() -> None:
    check_corpora([cell(ONE), cell(None, failed="no luck"), made_cell("swarm", 4, 0)])
    check_corpora([cell(ONE)], {"text": ONE, "mnist": None})
    with pytest.raises(DataError, match=f"SHA-256 {ONE}, others on {OTHER}"):
        check_corpora([cell(ONE)], {"text": OTHER})


def test_a_comparison_does_not_go_on_with_another_text(place: Path) -> None:
    (place / "found" / "cells").mkdir(parents=True)
    results.add(place / "found", cell(ONE))
    workload = dataclasses.replace(WORKLOADS["text"](), corpus=OTHER)
    fields = {"workload": "text", "every": 4, "workers": 2, "steps": 4}
    groups = [TaskGroup(parse("local-sgd"), fields, (0,), Tuning((0.1,), 0, 1, "loss"), None)]
    with pytest.raises(DataError, match=f"SHA-256 {ONE}, others on {OTHER}"):
        Runner(place / "found", 1, groups, workload)


def test_older_cells_are_those_without_warm_up_and_clipping() -> None:
    made = made_cell("swarm", 4, 0, warmup=0, clip=0.0)
    content = results.to_json(made)
    for name in ("warmup", "clip"):
        del content["config"][name]
    read = results.from_json(content, "here")
    assert read.key == made.key
    assert len(analyse([Results({}, (read, made_cell("swarm", 4, 1, warmup=0, clip=0.0)))])[0].rows) == 1


# Other machines


def test_a_machine_with_another_text_does_not_join() -> None:
    workload = dataclasses.replace(WORKLOADS["text"](), corpus=ONE)
    said = json.dumps({"workload": _marks(workload)})
    guest = Guest(resolved(workload, {}), Place(environment={SETTINGS: said}), lambda: None)
    check_own({"workload": "text"}, workload, guest)
    with pytest.raises(
        UsageError, match=f"WORKLOAD text: corpus: expected {ONE}, found {OTHER}; give that of the"
    ):
        check_own({"workload": "text"}, dataclasses.replace(workload, corpus=OTHER), guest)
