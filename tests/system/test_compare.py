"""The grid, its tuning, and how it is carried out: the command in this process, its workers as real processes."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from swarmstep.cli import main
from swarmstep.compare import comparison, evaluations, results, run_processes
from swarmstep.compare.methods import ALTERNATIVES, parse, parse_all
from swarmstep.compare.plan import WORST, Measure, TaskGroup, Tuning, next_rate, score
from swarmstep.compare.pool import Pool
from swarmstep.compare.results import Cell, Point, Results
from swarmstep.errors import DataError, UsageError
from swarmstep.strategies import STRATEGIES
from swarmstep.train.build import build_strategy, resolve
from swarmstep.train.config import BASELINES, Config
from swarmstep.workloads import Defaults, Examples, Workload, load
from whole_runs import fast_if

pytestmark = pytest.mark.usefixtures("forked")

SHORT = "--steps 12 --eval-every 4 --workers 2 --seeds 1"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def compare(arguments: str) -> int:
    return main(["compare", "digits", *arguments.split(), "--out", "found"])


def cells(folder: Path) -> dict[str, Cell]:
    return {cell.key: cell for cell in results.load(folder / "found").cells}


# What is compared


def test_a_method_in_one_word() -> None:
    method = parse("swarm+inertia=0.5+codec=int8+delay=8")
    assert (method.name, method.settings) == ("swarm", {"inertia": "0.5"})
    config = method.config(workload="digits", every=16, settings={"social": "1.0"})
    assert (config.strategy, config.codec, config.delay) == ("swarm", "int8", 8)
    assert config.settings == {"inertia": "0.5", "social": "1.0"}


def test_commas_within_a_value() -> None:
    methods = parse_all("local-sgd+when=qsr:4,0.1,swarm,diloco+when=warmup:10")
    assert [method.options.get("when") for method in methods] == ["qsr:4,0.1", None, "warmup:10"]


@pytest.mark.parametrize("spec", ["nope", "swarm+", "swarm+x", "swarm+=1", "swarm+delay=x", "swarm+lr=1+lr=2"])
def test_wrong_methods(spec: str) -> None:
    with pytest.raises(UsageError):
        parse(spec)


@pytest.mark.parametrize("name", ALTERNATIVES)
def test_what_tuning_tries_exists(name: str) -> None:
    for settings in ALTERNATIVES[name]:
        tried = build_strategy(Config("digits", strategy=name, settings=settings, every=16))
        assert tried != build_strategy(Config("digits", strategy=name, every=16)), "that is the default"


# Tuning


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ({0.1: 1.0, 0.2: 2.0}, 0.05),  # best at the lower edge: as far below
        ({0.1: 2.0, 0.2: 1.0}, 0.4),
        ({0.01: 3.0, 0.1: 1.0, 1.0: 2.0}, 0.32),  # between the best and its better side, geometrically
        ({0.01: 2.0, 0.1: 1.0, 1.0: math.inf}, 0.032),
    ],
)
def test_the_next_rate(losses: dict[float, float], expected: float) -> None:
    assert next_rate({rate: (loss, loss) for rate, loss in losses.items()}) == expected


def trial(loss: float, accuracy: float, **changes: Any) -> Cell:
    return Cell("tune", "swarm", {}, points=(Point(6, math.nan, 0.0, loss, accuracy, 0.0, 1.0),), **changes)


def test_trials_are_judged_by_the_metric_of_the_target() -> None:
    """Past the best loss the accuracy still rises: each metric prefers another trial."""
    sure, right = trial(0.1, 0.95), trial(0.2, 0.97)
    assert score(sure, "loss") < score(right, "loss")
    assert score(right, "accuracy") < score(sure, "accuracy")


def test_equal_accuracies_are_told_apart_by_the_loss() -> None:
    scores = [score(trial(loss, 0.95), "accuracy") for loss in (0.3, 0.1, 0.2)]
    assert sorted(range(3), key=scores.__getitem__) == [1, 2, 0]


@pytest.mark.parametrize("measure", ["accuracy", "loss"])
def test_what_failed_or_diverged_is_worse_than_everything(measure: Measure) -> None:
    gone = [trial(math.nan, 0.99), trial(math.inf, 0.99), trial(0.1, 0.99, failed="the loss is not finite")]
    assert {score(cell, measure) for cell in [*gone, Cell("tune", "swarm", {})]} == {WORST}
    assert score(trial(1e9, 0.0), measure) < WORST


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("--target-accuracy 0.9", "validation accuracy, as the target is one"),
        fast_if(False, "--target-loss 0.5", "validation loss, as the target is a loss"),
        fast_if(False, "", "validation accuracy, as without a target methods are ranked by accuracy"),
    ],
)
def test_tuning_follows_the_target(
    target: str, expected: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Which rate wins depends on the metric, and is checked by it."""
    arguments = f"{SHORT} --strategies local-sgd --every 4 --lr-grid 0.01,0.05,30 --extra-trials 0 --json"
    assert compare(f"{arguments} {target}") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["tuned_on"] == [expected]
    assert printed["seeds_needed"] == []
    made = cells(place).values()
    measure: Measure = "accuracy" if "accuracy" in expected else "loss"
    best = min((cell for cell in made if cell.purpose == "tune"), key=lambda cell: score(cell, measure))
    (run,) = (cell for cell in made if cell.purpose == "run")
    assert run.config["lr"] == best.config["lr"]
    edges = {0.01: ["downwards"], 0.05: [], 30.0: ["upwards"]}[run.config["lr"]]
    assert [edge["direction"] for edge in printed["edges"]] == edges
    assert compare(arguments) == 0, "a target of an earlier call stays"
    assert json.loads(capsys.readouterr().out)["tuned_on"] == [expected]


def test_a_workload_without_accuracy_is_tuned_on_its_loss() -> None:
    blind = dataclasses.replace(DIGITS, correct=None)
    for target in ({}, {"accuracy": 0.9}):
        assert comparison._measure(target, blind) == ("loss", "as the workload has no accuracy")


def test_a_workload_with_a_metric_is_tuned_and_ranked_by_it(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    methods = "local-sgd,local-sgd+objective=cross-entropy+sampling=natural"
    arguments = f"--strategies {methods} --every 4 --lr-grid 0.05,0.2 --extra-trials 0 --target-metric 0.01 --json"
    assert main(["compare", "imbalanced", *f"{SHORT} {arguments} --out found".split()]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["tuned_on"] == ["validation metric, as methods are ranked by its auc"]
    made = cells(place).values()
    assert {(cell.config["objective"], cell.config["sampling"]) for cell in made} == {
        ("auc", "balanced"),
        ("cross-entropy", "natural"),
    }
    assert all(
        0 < point.test_metric <= 1 and math.isnan(point.test_accuracy) for cell in made for point in cell.points
    )
    assert main(["report", "found", "--format", "md"]) == 0
    assert "steps to test auc 0.01" in capsys.readouterr().out


def test_a_metric_that_a_workload_does_not_have(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare(f"{SHORT} --target-metric 0.5") == 2
    assert "--target-metric: digits has no metric of its own" in capsys.readouterr().err


def test_trials_whose_metric_has_no_value_are_told_apart_by_their_losses() -> None:
    def trial(loss: float, metric: float) -> Cell:
        return Cell("tune", "swarm", {}, points=(Point(6, math.nan, 0.0, loss, math.nan, 0.0, 1.0, metric),))

    ordered = [trial(9.0, 0.8), trial(1.0, 0.5), trial(0.2, math.nan), trial(0.3, math.nan), trial(math.inf, 0.9)]
    assert sorted(ordered, key=lambda cell: score(cell, "metric")) == ordered


def test_a_folder_of_an_earlier_version_goes_on(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It did not say what its trials were judged by; its cells hold both metrics."""
    arguments = f"{SHORT} --strategies local-sgd --every 4 --target-accuracy 0.1"
    assert compare(arguments) == 0
    capsys.readouterr()
    about = json.loads((place / "found" / "compare.json").read_text())
    del about["tuned_on"]
    (place / "found" / "compare.json").write_text(json.dumps(about))
    assert main(["report", "found", "--format", "md"]) == 0
    assert "tuned on" not in capsys.readouterr().out
    ages = {file: file.stat().st_mtime_ns for file in (place / "found" / "cells").iterdir()}
    assert compare(arguments) == 0
    assert {file: file.stat().st_mtime_ns for file in (place / "found" / "cells").iterdir()} == ages
    assert "tuned on the validation accuracy" in capsys.readouterr().out


def test_the_best_rate_at_the_edge_is_told(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = f"{SHORT} --strategies local-sgd --every 4 --lr-grid 0.00001,0.001 --extra-trials 0"
    assert compare(arguments) == 0
    text = (
        "the best rate of local-sgd, n = 4 lies at the edge of its grid (0.001 of 1e-05, 0.001): "
        "extend --lr-grid upwards"
    )
    assert text in capsys.readouterr().out
    assert compare(f"{arguments} --json") == 0
    assert [edge["text"] for edge in json.loads(capsys.readouterr().out)["edges"]] == [text]


# How often runs are evaluated


def of_size(train: int, test: int, own: int) -> Workload:
    data = [Examples(torch.zeros(count, 1), torch.zeros(count, dtype=torch.long)) for count in (train, test)]
    return dataclasses.replace(DIGITS, train=data[0], test=data[1], defaults=Defaults(eval_every=own))


@pytest.mark.parametrize(
    ("train", "test", "own", "steps", "expected"),
    [
        (1000, 92, 250, 400, 20),  # 192 examples an evaluation, 192 a step of 2 workers: cheap
        (1000, 92, 7, 400, 7),  # the workload's own is finer
        (1000, 9500, 250, 1000, 100),  # as costly as 50 steps: half the cost of training is 10 evaluations
        (1000, 9500, 250, 200, 40),  # 5 points at any cost
        (1000, 92, 250, 3, 1),
    ],
)
def test_as_many_evaluations_as_are_cheap(train: int, test: int, own: int, steps: int, expected: int) -> None:
    assert evaluations.interval(of_size(train, test, own), steps, batch=32, workers=2) == expected


def test_a_compared_run_has_a_curve(place: Path) -> None:
    arguments = "--steps 160 --workers 2 --seeds 1 --lr-grid 0.02 --strategies local-sgd --every 4"
    assert compare(arguments) == 0
    (made,) = cells(place).values()
    assert len(made.points) >= 20
    assert resolve(Config("digits"), DIGITS).eval_every == 100, "that of train stays"


rates = st.lists(st.sampled_from([0.001 * 2**i for i in range(14)]), min_size=2, max_size=5, unique=True)


@given(
    st.sampled_from(sorted({*STRATEGIES} - {"fedpso"})), rates, st.integers(0, 3),
    st.lists(st.one_of(st.floats(0.01, 10), st.just(math.nan)), min_size=8, max_size=8),
    st.sampled_from(["accuracy", "loss"]),
)  # fmt: skip
def test_every_method_gets_the_same_trials_and_the_best_of_them(
    name: str, rates: list[float], extra: int, losses: list[float], measure: Measure
) -> None:
    """The accuracy rises with the loss, so that the best trial by one is the worst by the other."""
    every = 1 if name in BASELINES else 4
    fields = {"workload": "digits", "every": every, "workers": 2, "steps": 12}
    group = TaskGroup(parse(name), fields, (0, 1, 2), Tuning(tuple(sorted(rates)), extra, 6, measure), None)
    work, losses_of = group.work(DIGITS), {}
    tasks, values = next(work), iter(losses)
    while tasks[0].purpose == "tune":
        answers = []
        for task in tasks:
            loss = next(values)
            losses_of[task.config.lr, tuple(task.config.settings.items())] = loss
            points = (Point(6, math.nan, 0.0, loss, loss / 10, 0.0, 1.0),)
            answers.append(Cell("tune", name, {}, points=points))
        assert {task.config.steps for task in tasks} == {6}
        tasks = work.send(answers)
    assert len(losses_of) == len(rates) + extra, "each a different one"
    assert [task.config.seed for task in tasks] == [0, 1, 2]
    chosen = {(task.config.lr, tuple(task.config.settings.items())) for task in tasks}
    assert len(chosen) == 1
    finite = {trial: loss for trial, loss in losses_of.items() if math.isfinite(loss)}
    best = max if measure == "accuracy" else min
    assert not finite or losses_of[chosen.pop()] == best(finite.values())


DIGITS = load("digits", None)


# The command


def test_a_grid_is_run_once(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = f"{SHORT} --strategies local-sgd,synchronous --every 2,4 --target-accuracy 0.1 --link 100mbit,5ms"
    assert compare(arguments) == 0
    printed = capsys.readouterr().out
    assert "local-sgd" in printed
    assert "not ranked" in printed
    first = cells(place)
    assert sorted((c.purpose, c.method, c.config["every"]) for c in first.values()) == sorted(
        [("tune", method, n) for method, n in (("local-sgd", 2), ("local-sgd", 4), ("synchronous", 1))] * 4
        + [("run", "local-sgd", 2), ("run", "local-sgd", 4), ("run", "synchronous", 1)]
    )
    run = next(c for c in first.values() if (c.purpose, c.config["every"]) == ("run", 4))
    assert [point.step for point in run.points] == [4, 8, 12]
    assert run.points[-1].bytes == pytest.approx(3 * (56 + (4 * (run.parameters + 1))))  # (W-1)/W is a half
    assert [(r.started, r.landed) for r in run.rounds()] == [(4, 4), (8, 8), (12, 12)]
    assert [call.verb for call in next(iter(run.rounds())).calls] == ["gather", "mean"]
    ages = {file: file.stat().st_mtime_ns for file in (place / "found" / "cells").iterdir()}
    assert compare(arguments) == 0
    assert "(0 s)" not in capsys.readouterr().err, "nothing was run again"
    assert compare(f"{arguments} --seeds 2") == 0
    assert {file: file.stat().st_mtime_ns for file in ages} == ages
    assert len(cells(place)) == len(first) + 3


def test_texts_are_recorded_and_not_mixed(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("one", "other"):
        (place / name).write_text(f"{name} text, of which there is enough. " * 200)
    words = (
        "text --strategies local-sgd --model gpt-small --steps 2 --workers 1 --every 2 --lr-grid 0.001 --seeds 1"
    )
    run = ["compare", *words.split(), "--clip", "0.5", "--out", "found", "--data"]
    assert main([*run, "one"]) == 0
    (made,) = cells(place).values()
    assert len(made.environment["corpus"]) == 64
    assert (made.config["clip"], made.config["warmup"]) == (0.5, 50)
    assert main([*run, "other"]) == 3
    assert "others on" in capsys.readouterr().err


def test_a_failed_cell_is_recorded_and_the_rest_goes_on(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "odd.py").write_text(ODD)
    arguments = ["compare", "odd.py:workload", *SHORT.split(), "--strategies", "local-sgd,median", "--every", "4"]
    arguments += ["--seeds", "3", "--lr-grid", "0.1", "--out", "found"]
    assert main(arguments) == 0
    printed = capsys.readouterr()
    assert "failed: seed 1 is unlucky" in printed.err
    made = list(cells(place).values())
    assert sorted((c.method, c.seed, bool(c.failed)) for c in made) == [
        (method, seed, seed == 1) for method in ("local-sgd", "median") for seed in range(3)
    ]
    (place / "odd.py").write_text(ODD.replace("== 1:", "== -1:"))
    assert main(arguments) == 0, "a failed cell is tried again"
    assert not any(cell.failed for cell in cells(place).values())


ODD = """
import torch
from torch import nn
from swarmstep.workloads import Defaults, Examples, Workload
from swarmstep.errors import UsageError

def model():
    if torch.initial_seed() == SEEDS[1] and 1 == 1:
        raise UsageError("seed 1 is unlucky")
    return nn.Linear(4, 2)

from swarmstep.seeding import mix
SEEDS = [mix(seed, "model") for seed in range(3)]
x = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
workload = Workload(name="odd", train=Examples(x, (x.sum(1) > 0).long()), test=Examples(x, (x.sum(1) > 0).long()),
    models={"linear": model}, defaults=Defaults(lr=0.1, batch=4, every=4, steps=12), classes=2)
"""


def test_a_worker_that_is_killed_fails_its_cell_only(place: Path) -> None:
    fields = {"workload": "digits", "every": 2, "workers": 2, "steps": 4000, "eval_every": 4000}
    group = TaskGroup(parse("local-sgd"), fields, (0,), Tuning((), 0, 1, "loss"), None)
    short = TaskGroup(
        parse("local-sgd"), {**fields, "steps": 4, "eval_every": 4}, (0,), Tuning((), 0, 1, "loss"), None
    )
    with Pool(1) as pool:
        pool.put(next(group.work(DIGITS))[0])
        while not pool._processes:
            pass
        pool._processes[0].send_signal(signal.SIGKILL)
        pool.put(next(short.work(DIGITS))[0])
        _, first = taken(pool)
        _, second = taken(pool)
    assert first.failed == "the process that ran it was ended by SIGKILL"
    assert not second.failed


def taken(pool: Pool) -> tuple[Any, Cell]:
    done = pool.get(timeout=60)
    assert done
    return done


def test_interrupted_it_goes_on_later(place: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "swarmstep",
        "compare",
        "digits",
        "--out",
        "found",
        "--strategies",
        "local-sgd",
    ]
    command += ["--steps", "300", "--workers", "2", "--seeds", "5", "--lr-grid", "0.02", "--jobs", "1"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        process.stderr.readline()
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait(60) == 130
    assert "stopped on request" in rest
    before = set(cells(place))
    assert 1 <= len(before) < 5
    assert main(command[3:]) == 0
    assert len(cells(place)) == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--strategies nope", "unknown strategy 'nope'"),
        ("--strategies swarm+nope=1", "unknown setting 'nope'"),
        ("--every 0", "--every '0': expected whole numbers of at least 1"),
        ("--workers x", "--workers 'x'"),
        ("--seeds 0", "--seeds: expected at least 1, found 0"),
        ("--lr-grid 0.1,-1", "--lr-grid"),
        ("--target-accuracy 2", "--target-accuracy"),
        ("--link 100", "link '100'"),
        ("--shards nope", "unknown shards"),
        ("--fault nope", "nope"),
        ("--stragglers nope", "nope"),
        ("--failures nope", "nope"),
        ("--jobs 0", "--jobs"),
        ("--extra-trials -1", "--extra-trials"),
        ("--tune-steps 0", "steps"),
        ("--backend gloo --link 1mbit", "--link"),
        ("--backend gloo --compute 1", "--compute"),
        ("--strategies ddp", "ddp needs real processes"),
    ],
)
def test_wrong_options(arguments: str, message: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare(arguments) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert not (place / "found" / "cells").exists() or not cells(place)


def test_a_wrong_command_changes_nothing(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = f"{SHORT} --strategies local-sgd --lr-grid 0.05"
    assert compare(f"{arguments} --target-accuracy 0.1") == 0
    before = (place / "found" / "compare.json").read_text()
    assert compare(f"{arguments},swarm+nope=1 --target-accuracy 0.5") == 2
    assert compare(f"{SHORT} --strategies swarm+nope=1 --target-accuracy 0.5") == 2
    assert (place / "found" / "compare.json").read_text() == before


def test_a_trial_that_was_killed_is_no_verdict(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trials = (place / "odd.py").write_text(ODD.replace("SEEDS[1] and", "TUNING and").replace("SEEDS = [", TUNING))
    assert trials
    arguments = [
        "compare",
        "odd.py:workload",
        *SHORT.split(),
        "--strategies",
        "local-sgd",
        "--every",
        "4",
        "--out",
        "found",
    ]
    assert main(arguments) == 0
    assert {cell.purpose for cell in cells(place).values()} == {"tune"}, (
        "nothing is run with settings nobody judged"
    )
    (place / "odd.py").write_text(ODD.replace("SEEDS[1] and", "-1 and"))
    assert main(arguments) == 0
    assert not any(cell.failed for cell in cells(place).values())
    assert {cell.purpose for cell in cells(place).values()} == {"tune", "run"}


TUNING = 'TUNING = mix(1_000_000, "model")\nSEEDS = ['


def test_two_at_once(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from swarmstep.train.run_folder import locked

    (place / "found").mkdir()
    with locked(place / "found" / "lock"):
        assert compare(SHORT) == 4
    assert "in use by another comparison" in capsys.readouterr().err


# Real processes


def test_the_command_line_of_a_config() -> None:
    config = parse("swarm+codec=int8+delay=2+inertia=0.5").config(
        workload="digits", fault="sign:1", fast_sums=True
    )
    resolved = resolve(config, DIGITS)
    from swarmstep.cli.app import load
    from swarmstep.cli.options import given as given_by

    context = load("train").make_context("train", run_processes.arguments(resolved, Path("x"))[1:])
    assert resolve(Config(**given_by(context, Config)), DIGITS) == resolved


def test_a_warm_up_keeps_its_n() -> None:
    config = resolve(parse("diloco+when=warmup:10").config(workload="digits", every=64), DIGITS)
    words = run_processes.arguments(config, Path("x"))
    assert words[words.index("--when") + 1] == "warmup:10,every:64"
    assert "--every" not in words


def test_real_processes(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = "--backend gloo --workers 2 --steps 12 --eval-every 4 --seeds 1 --lr-grid 0.05"
    assert compare(f"{arguments} --strategies ddp,local-sgd --every 4") == 0
    made = cells(place).values()
    assert {cell.method for cell in made} == {"ddp", "local-sgd"}
    for cell in made:
        seconds = [point.seconds for point in cell.points]
        assert seconds == sorted(seconds)
        assert seconds[0] > 0
    ddp = next(cell for cell in made if cell.method == "ddp")
    assert [(r.started, r.calls[0].verb) for r in ddp.rounds()] == [(step, "mean") for step in range(1, 13)]
    assert not list((place / "found").glob("running*"))


# The files


def test_in_virtual_time(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    methods = "--strategies local-sgd,local-sgd+balance=steps,asgrad --every 3 --speeds 1,3"
    assert compare(f"{SHORT} --lr-grid 0.02 {methods}") == 0
    assert "virtual seconds: a step takes each worker as many as its speed says" in capsys.readouterr().out
    seconds = {cell.method: cell.points[-1].seconds for cell in cells(place).values()}
    assert seconds["local-sgd"] == 36
    assert max(seconds["asgrad"], seconds["local-sgd+balance=steps"]) < 30
    assert main(["report", "found", "-o", "page.html"]) == 0
    page = (place / "page.html").read_text()
    assert "What each worker did, means over the seeds" in page
    assert "<td>18.0 s</td>" in page  # the fast worker waited, but in the last round


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--speeds 1,3 --link 100mbit", "a simulated run then has seconds of its own"),
        ("--disturb 0:1-2:2 --compute 0.1", "a simulated run then has seconds of its own"),
        (
            "--strategies asgrad",
            "asgrad has no rounds, and is compared in virtual time: expected",
        ),
        ("--strategies quorum --speeds 1,3 --backend gloo", "quorum has no rounds"),
    ],
)
def test_what_has_no_virtual_time(
    arguments: str, message: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare(f"{SHORT} {arguments}") == 2
    assert message in capsys.readouterr().err
    assert not Path("found").exists()


def test_what_is_written_is_read(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare(f"{SHORT} --strategies swarm --lr-grid 0.05 --json") == 0
    assert json.loads(capsys.readouterr().out)["failed"] == 0
    assert main(["report", "found", "--format", "md", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["format"], printed["file"]) == ("md", None)
    assert "swarm" in printed["text"]
    assert main(["report", "found", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"format": "html", "file": "report.html", "text": None}
    loaded = results.load(place / "found")
    (place / "all.json").write_text(results.dumps(loaded))
    again = results.load(place / "all.json")
    assert [results.to_json(cell) for cell in again.cells] == [results.to_json(cell) for cell in loaded.cells]
    assert again.about == loaded.about


@given(cut=st.integers(0, 400), junk=st.binary(max_size=3))
def test_damaged_files(cut: int, junk: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    cell = Cell("run", "swarm", {"backend": "sim", "workload": "w", "model": "m", "every": 1, "workers": 1,
                "shards": "iid", "fault": None, "seed": 0}, points=(Point(1, *[0.5] * 6),))  # fmt: skip
    whole = json.dumps({"about": {}, "cells": [results.to_json(cell)]}).encode()
    file = tmp_path_factory.mktemp("damaged") / "found.json"
    file.write_bytes(whole[:cut] + junk + whole[cut + len(junk) :])
    with contextlib.suppress(DataError):
        assert len(results.load(file).cells) == 1


def test_no_results(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for source in ("nothing", "."):
        assert main(["report", source]) == 3
        assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(("module", "command"), [("scipy", "compare"), ("jinja2", "report")])
def test_without_the_extra_one_line_names_it(
    module: str, command: str, place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    if command == "compare":
        assert compare(SHORT) == 2
        assert not list((place / "found" / "cells").glob("*"))
    else:
        (place / "found.json").write_text(results.dumps(Results({}, ())))
        assert main(["report", "found.json"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert module in line
    assert line.endswith('pip install "swarmstep[compare]"')
