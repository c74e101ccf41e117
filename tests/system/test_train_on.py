"""A run in real processes that is done goes on to more steps, as if they had been asked for at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from runs import ROOT, report, rows, same_run, weights
from swarmstep.cli import main

pytestmark = pytest.mark.usefixtures("forked")

WORKLOAD = f"{ROOT / 'tests/support/runs.py'}:classes"
TRAIN = ("train", WORKLOAD, "--workers", "2", "--every", "4", "--eval-every", "10", "--checkpoint-every", "16")


@pytest.mark.slow  # three times the start of two interpreters
def test_in_processes_of_a_fixed_number(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main([*TRAIN, "--steps", "60", "--out", str(whole)]) == 0
    assert main([*TRAIN, "--steps", "25", "--backend", "gloo", "--out", str(parts)]) == 0
    assert main(["train", "--resume", str(parts), "--steps", "20"]) == 2
    assert main(["train", "--resume", str(parts), "--steps", "60"]) == 0
    same_run(whole, parts)


SLOW = (pytest.param(every, marks=pytest.mark.slow) for every in ("8", "500"))


@pytest.mark.parametrize("checkpoint_every", ["16", *SLOW])
def test_in_elastic_processes(checkpoint_every: str, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train = [*TRAIN, "--elastic", "local", "--checkpoint-every", checkpoint_every]
    assert main([*train, "--steps", "40", "--out", str(whole)]) == 0
    assert main([*train, "--steps", "24", "--out", str(parts)]) == 0
    assert main(["train", "--resume", str(parts), "--steps", "24"]) == 2
    assert main(["train", "--resume", str(parts), "--steps", "40"]) == 0
    assert weights(whole) == weights(parts)
    assert report(whole) == report(parts)
    assert [(row["kind"], row["step"]) for row in rows(whole)] == [
        (row["kind"], row["step"]) for row in rows(parts)
    ]
