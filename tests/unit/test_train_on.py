"""A run that is done, or was stopped, goes on to other --steps, as if they had been asked for at once."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from runs import ROOT, rows, same_run, weights
from swarmstep.cli import main

Refuse = Callable[..., str]

WORKLOAD = f"{ROOT / 'tests/support/runs.py'}:classes"
TRAIN = ("train", WORKLOAD, "--workers", "2", "--every", "4", "--eval-every", "10")


@pytest.fixture
def refuse(capsys: pytest.CaptureFixture[str]) -> Refuse:
    """Return a function that expects an exit code, and returns the last line of what is said."""

    def refuse(code: int, *arguments: str) -> str:
        capsys.readouterr()
        assert main(arguments) == code
        return capsys.readouterr().err.splitlines()[-1]

    return refuse


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # `main` sets its own
    return tmp_path


@pytest.mark.parametrize(
    ("options", "first"),
    [
        pytest.param(  # due at the last step, too
            ("--checkpoint-every", "10", "--strategy", "pso-ps"), "30", marks=pytest.mark.slow
        ),
        pytest.param(("--strategy", "local-sgd"), "30", marks=pytest.mark.slow),  # without a checkpoint
        (("--checkpoint-every", "7", "--delay", "3", "--codec", "int8", "--strategy", "diloco"), "25"),
        (("--checkpoint-every", "16", "--shards", "dealt", "--optimizer", "adamw"), "17"),
        pytest.param(("--checkpoint-every", "16", "--strategy", "synchronous"), "30", marks=pytest.mark.slow),
    ],
)
def test_a_run_that_is_done_goes_on(options: tuple[str, ...], first: str, place: Path) -> None:
    train = [*TRAIN, *options]
    assert main([*train, "--steps", "60", "--out", "whole"]) == 0
    assert main([*train, "--steps", first, "--out", "parts"]) == 0
    assert main(["train", "--resume", "parts", "--steps", "60"]) == 0
    same_run(place / "whole", place / "parts")
    settings = (json.loads((place / name / "config.json").read_text()) for name in ("whole", "parts"))
    assert next(settings) == next(settings)


def test_more_than_once_and_with_more_workers(place: Path) -> None:
    train = [*TRAIN, "--checkpoint-every", "8"]
    assert main([*train, "--steps", "50", "--out", "whole"]) == 0
    assert main([*train, "--steps", "10", "--out", "parts"]) == 0
    for steps in ("20", "35", "50"):
        assert main(["train", "--resume", "parts", "--steps", steps]) == 0
    same_run(place / "whole", place / "parts")
    assert main(["train", "--resume", "parts", "--steps", "60", "--workers", "3"]) == 0
    looks = [(row["step"], len(row["losses"])) for row in rows(place / "parts") if row["kind"] == "look"]
    assert looks[-2:] == [(50, 3), (60, 3)]  # from the checkpoint of step 48


def test_one_that_is_stopped_meanwhile_is_not_done(place: Path) -> None:
    train = [*TRAIN, "--checkpoint-every", "8"]
    assert main([*train, "--steps", "60", "--out", "whole"]) == 0
    assert main([*train, "--steps", "20", "--out", "parts"]) == 0
    assert main(["train", "--resume", "parts", "--steps", "60", "--stop-at", "41"]) == 130
    assert not (place / "parts/summary.json").exists()
    assert main(["train", "--resume", "parts"]) == 0
    same_run(place / "whole", place / "parts")


@pytest.mark.parametrize("steps", ["20", "70"])
def test_one_that_was_stopped_goes_on_to_other_steps(steps: str, place: Path, refuse: Refuse) -> None:
    assert main([*TRAIN, "--steps", steps, "--out", "whole"]) == 0
    assert main([*TRAIN, "--steps", "40", "--stop-at", "13", "--out", "parts"]) == 130
    for few in ("12", "13"):
        line = refuse(2, "train", "--resume", "parts", "--steps", few)
        assert line.endswith(f"--steps {few}: the run has taken 13 steps; expected more than that")
    assert main(["train", "--resume", "parts", "--steps", steps]) == 0
    same_run(place / "whole", place / "parts")


def test_what_cannot_go_on_is_named_and_stays_as_it_is(place: Path, refuse: Refuse) -> None:
    assert main([*TRAIN, "--steps", "20", "--out", "flat"]) == 0
    assert main([*TRAIN, "--steps", "20", "--schedule", "cosine", "--out", "wave"]) == 0
    assert main([*TRAIN, "--steps", "20", "--until-accuracy", "0.01", "--out", "good"]) == 0
    before = [weights(place / name) for name in ("flat", "wave", "good")]
    line = refuse(4, "train", "--resume", "flat")
    assert "flat: the run is done, see its summary.json; give more --steps to train on, or another --out" in line
    for few in ("20", "3"):
        line = refuse(2, "train", "--resume", "flat", "--steps", few)
        assert f"--steps {few}: flat has taken 20 steps and is done; expected more than that" in line
    line = refuse(2, "train", "--resume", "flat", "--steps", "30", "--lr", "3")
    assert "--lr 3.0: the run to resume has 0.05" in line
    line = refuse(2, "train", "--resume", "wave", "--steps", "30")
    assert "--steps 30: wave has a cosine schedule, by which the learning rate of each step depends on the" in line
    assert "start a new one" in line
    line = refuse(2, "train", "--resume", "good", "--steps", "30")
    assert "good was done at step 10, where it reached --until-accuracy 0.01; more steps change nothing" in line
    assert [weights(place / name) for name in ("flat", "wave", "good")] == before
    (place / "flat/summary.json").write_text("{")
    assert "flat/summary.json is damaged" in refuse(4, "train", "--resume", "flat", "--steps", "30")
