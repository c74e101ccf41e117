"""Whole runs by layers: what they leave, that they go on, and what does not go with them."""

from __future__ import annotations

import importlib.util
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from layers import grow
from runs import classes, rows, same_run
from swarmstep.cli import main
from swarmstep.errors import CheckpointError
from swarmstep.layerwise import SSFN

WAYS: list[dict[str, Any]] = [{}, {"graph": "ring:2"}, {"graph": "complete", "shards": "classes:2"}]


@pytest.mark.parametrize("fields", WAYS, ids=str)
def test_a_run_that_was_stopped_goes_on_with_the_same_bits(fields: dict[str, Any], tmp_path: Path) -> None:
    grow(fields, tmp_path / "whole")
    said = grow(fields, tmp_path / "parts", stop_at=2)
    assert "stopped after layer 2, on all ranks; go on with: swarmstep train --resume" in said["interrupted"]
    grow(fields, tmp_path / "parts", resume=True)
    same_run(tmp_path / "whole", tmp_path / "parts")


def test_the_file_is_a_module_with_the_accuracy_of_the_summary(tmp_path: Path) -> None:
    summary = grow({"graph": "ring:2", "settings": {"iterations": "400", "tolerance": "0"}}, tmp_path / "run")
    network, test = SSFN(6, 3, summary["nodes"]), classes().test
    network.load_state_dict(load_file(tmp_path / "run" / "model.safetensors"))
    right = (network(test.inputs).argmax(1) == test.targets).double().mean().item()
    assert summary["test_accuracy"] == pytest.approx(right)
    assert right > 0.8
    layers = [row for row in rows(tmp_path / "run") if row["kind"] == "layer"]
    assert [row["layer"] for row in layers] == [0, 1, 2, 3]
    assert [row["step"] for row in layers] == [1, 1, 2, 3]
    assert summary["spread"] < 1e-12
    assert summary["steps_taken"] == 3


def test_another_number_of_workers_is_refused(tmp_path: Path) -> None:
    grow({}, tmp_path / "run", stop_at=1)
    with pytest.raises(CheckpointError, match="3"):
        grow({}, tmp_path / "run", workers=2, resume=True)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("digits --graph ring:2", "--graph ring:2: expected --method ssfn, found gradient"),
        ("digits --method ssfn --steps 5", "--steps 5: does not go with --method ssfn, which has no steps"),
        ("digits --method ssfn --eval-every 5", "--eval-every 5: does not go with --method ssfn"),
        ("digits --method ssfn --codec int8", "--codec int8: does not go with"),
        ("digits --method ssfn --elastic local", "--elastic local: does not go with"),
        ("digits --method ssfn --strategy diloco", "--strategy diloco: does not go with"),
        ("digits --method ssfn --balance steps", "--balance steps: does not go with"),
        ("digits --method ssfn --fault nan:1:2", "--fault nan:1:2: does not go with"),
        ("digits --method ssfn --shards dealt", "and shards other than dealt"),
        ("digits --method ssfn --seed -1", "expected a seed from 0"),
        ("digits --method ssfn --graph ring:4", "ring:4: expected an even degree from 2 to 3 with 4 workers"),
        ("digits --method ssfn --set nope=1", "unknown setting 'nope' of SSFNSettings; expected one of layers"),
        ("digits --method ssfn --stop-at 21", "--stop-at: expected a step from 1 to 20, found 21"),
        ("digits --method ssfn --workers 3000", "workers must be 1 to 1223, the number of examples, found 3000"),
        ("text --method ssfn", "--method ssfn: expected a workload of examples with a class each, found text"),
    ],
)
def test_what_does_not_go_with_it_is_named(line: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *shlex.split(line), "--no-files"]) == 2
    assert said in capsys.readouterr().err


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "digits --method ssfn --graph ring:2 --set layers=2 --set width=9 --set iterations=9 --set tolerance=0"
    assert main(["train", *words.split(), "--json", "--out", str(tmp_path / "run")]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["method"], summary["graph"], len(summary["layers"])) == ("ssfn", "ring:2", 3)
    assert summary["test_accuracy"] > 0.85
    assert main(["train", "--resume", str(tmp_path / "run")]) == 4
    assert main(["strategies", "ssfn"]) == 0
    assert "  deeper=0.1" in capsys.readouterr().out
    assert main(["cite", "ssfn"]) == 0
    assert "2009.13982" in capsys.readouterr().out


def test_the_example(capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(__file__).parents[3] / "examples" / "layerwise.py"
    assert len(path.read_text().splitlines()) <= 60
    spec = importlib.util.spec_from_file_location("example_layerwise", path)
    assert spec
    assert spec.loader
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    with torch.random.fork_rng():
        example.main(width=20, layers=1)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert lines[-1].startswith("decided differently than central training: 0 of 360")
