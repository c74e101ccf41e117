"""A run or a comparison that is done without a finite result says so, by an exit code of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from swarmstep.cli import main
from swarmstep.cli.json_output import print_json
from swarmstep.errors import ResultNotFinite

pytestmark = pytest.mark.usefixtures("forked")

FILE = """
import math
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from swarmstep.workloads import Defaults, Examples, Workload

x = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
y = (x.sum(1) > 0).long()

def make(loss, **changes):
    settings = dict(train=Examples(x[:60], y[:60]), test=Examples(x[60:], y[60:]), classes=2, loss=loss,
                    models={"linear": lambda: nn.Linear(4, 2)}, defaults=Defaults(batch=4, every=2, steps=6))
    return Workload("huge", **{**settings, **changes})

def loss(outputs, targets):
    return cross_entropy(outputs, targets) * (math.inf if len(outputs) > 30 else 1)  # on the test set

bad_test = make(loss)
no_accuracy = make(cross_entropy, classes=None, correct=None)
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(FILE)
    return tmp_path


TRAIN = ("train", "mine.py:bad_test", "--workers", "2")


def constant(text: str) -> Any:
    raise AssertionError(f"{text} is no JSON")


@pytest.mark.parametrize("options", [(), pytest.param(("--backend", "gloo"), marks=pytest.mark.slow)])
def test_a_run(options: tuple[str, ...], place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main([*TRAIN, *options, "--json", "--out", "run"]) == ResultNotFinite.exit_code == 7
    out, err = capfd.readouterr()
    shown = json.loads(out, parse_constant=constant)
    assert shown["test_loss"] is None
    assert shown["train_loss"] > 0
    assert "the run is done, but its result is not finite: test_loss is inf; expected" in err.splitlines()[-1]
    assert json.loads((place / "run/summary.json").read_text(), parse_constant=constant) == shown
    assert (place / "run/model.safetensors").exists()


def test_an_elastic_run_whose_other_workers_end_with_0(capfd: pytest.CaptureFixture[str]) -> None:
    assert main([*TRAIN, "--elastic", "local", "--no-files"]) == 7
    assert capfd.readouterr().err.count("its result is not finite: test_loss is inf") == 1


def test_what_has_no_accuracy_or_no_round_is_finite() -> None:
    assert main(["train", "mine.py:no_accuracy", "--workers", "2", "--no-files"]) == 0
    elastic = ("--elastic", "local", "--every", "50", "--no-files")
    assert main(["train", "mine.py:no_accuracy", "--workers", "2", *elastic]) == 0


def test_a_comparison_without_any_finite_result(capfd: pytest.CaptureFixture[str]) -> None:
    compare = ["compare", "mine.py:bad_test", "--strategies", "local-sgd", "--workers", "2", "--every", "2"]
    compare += ["--seeds", "1", "--extra-trials", "0", "--lr-grid", "0.1", "--jobs", "1", "--out", "all", "--json"]
    assert main(compare) == 7
    out, err = capfd.readouterr()
    counts = json.loads(out)
    assert (counts["runs"], counts["finite"], counts["failed"]) == (1, 0, 0)
    assert "none of its 1 runs has a finite test loss" in err.splitlines()[-1]


def test_json_holds_null_for_what_is_not_finite(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"a": [float("nan"), (1.5, float("-inf"))], "b": {"c": float("inf"), "d": None}})
    assert capsys.readouterr().out == '{"a": [null, [1.5, null]], "b": {"c": null, "d": null}}\n'
