"""``swarmstep bench``: what it prints and how it ends. Nothing here asks how fast anything is."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from swarmstep.cli import main
from swarmstep.cli.options import whole_number
from swarmstep.comm.sim import simulate
from swarmstep.microbench import checks, interleaved_timing, workers
from swarmstep.microbench.benchmarks import BENCHMARKS
from swarmstep.microbench.results import Figure, Measurement, Report, Skipped, rows_of


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "SWARMSTEP_TRACEBACK", workers.JOB):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("wire --workers 1", "--workers: expected 2 to 64, found 1"),
        ("wire --link fast", "link 'fast': the rate must be 1kbit to 1000gbit"),
        ("overlap --repeats 0", "--repeats: expected 1 to 10,000, found 0"),
        ("overlap --link 0mbit", "link '0mbit': the rate must be 1kbit to 1000gbit"),
        ("wire --link 1mbit,5", "unknown part '5'; expected RATE[,DELAY][,LOSS]"),
        ("", "missing command; swarmstep bench --help shows what is valid"),
        ("nope", "no such command 'nope'"),
        ("round --workers 0", "--workers: expected 1 to 128, found 0"),
        ("round --workers 2.5", "--workers: expected a whole number, found '2.5'"),
        ("round --workers inf", "--workers: expected a whole number, found 'inf'"),
        ("round --parameters 0", "--parameters: expected 1 to 1,000,000,000, found 0"),
        ("round --parameters many", "--parameters: expected a whole number, found 'many'"),
        ("round --parameters 5 --tensors 6", "--tensors: expected 1 to 5, found 6"),
        ("round --repeats 0", "--repeats: expected 1 to 10,000, found 0"),
        ("round --seed -1", "--seed: expected 0 to"),
        ("round --patience 0.1", "--patience: expected 1.0 to"),
        ("round --patience nan", "--patience: expected 1.0 to"),
        ("round --workers 128 --parameters 1e9", "give fewer --workers or --parameters"),
        ("scale --max-processes 0", "--max-processes: expected 1 to 64, found 0"),
        ("scale --most 0", "--most: expected 1 to 10,000,000,000, found 0"),
        ("sweep --length 130", "--length: expected a multiple of 4 workers, found 130"),
        ("sweep --workers 0", "--workers: expected 1 to 64, found 0"),
        ("sweep --tolerance -1", "--tolerance: expected 0.0 to 1.0, found -1"),
        ("scale --repeats x", "--repeats: expected a whole number, found 'x'"),
    ],
)
def test_wrong_options(arguments: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *arguments.split()]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("swarmstep: ")
    assert said in line


def test_only_what_exists_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"│ {name} " in shown for name in BENCHMARKS)


def test_a_report_survives_json() -> None:
    medians = {"all-reduce": 0.5, "round": 1.0}
    rows = rows_of(medians, {"all-reduce": None, "round": "all-reduce"}, 4, 10)
    assert rows == [
        Measurement("all-reduce", 4, 10, 0.5),
        Measurement("round", 4, 10, 1.0, "all-reduce", 0.5, 2.0),
    ]
    report = Report(rows, [Skipped("accelerate", "not installed", workers=4)], figures=[Figure("sweeps", 4, 3.0)])
    assert Report.loads(report.dumps()) == report


def test_medians_are_of_the_slowest_rank_and_each_repeat_starts_with_another_case() -> None:
    order: list[str] = []

    def train(comm: Any) -> dict[str, float]:
        def case(name: str, seconds: float) -> interleaved_timing.Case:
            def run() -> None:
                time.sleep(seconds * comm.rank)
                if comm.rank == 0:
                    order.append(name)

            return interleaved_timing.Case(lambda: None, run)

        cases = {"a": case("a", 0.0), "b": case("b", 0.01)}
        return interleaved_timing.interleaved_medians(cases, comm, 3)

    first, second = simulate(train, 2)
    assert first == second
    assert first["b"] >= 0.01 > first["a"]
    assert order == ["a", "b"] * interleaved_timing.WARM_UPS + ["a", "b", "b", "a", "a", "b"]


@pytest.mark.parametrize(
    ("text", "number"), [("7", 7), ("1e7", 10_000_000), ("10_000", 10_000), (str(2**62 - 1), 2**62 - 1)]
)
def test_whole_numbers(text: str, number: int) -> None:
    assert whole_number(text) == number


def test_too_little_memory_is_reported_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "free_memory", lambda: 10**9)
    assert checks.missing_memory(10**7, 10) == ""
    assert checks.missing_memory(10**8, 10) == "needs about 4 GB of memory, 1 GB are available"
    monkeypatch.setattr(checks, "free_memory", lambda: None)
    assert checks.missing_memory(10**12, 10) == ""


def test_sweeps_in_process(capsys: pytest.CaptureFixture[str]) -> None:
    """A chain that forgets: fewer sweeps than segments, and what they compute is right."""
    words = ["bench", "sweep", "--backend", "sim", "--workers", "2", "--length", "32", "--hidden", "8"]
    assert main([*words, "--gain", "0.5", "--json"]) == 0
    figures = {one["name"]: one["value"] for one in json.loads(capsys.readouterr().out)["figures"]}
    assert len(figures) == 8
    assert figures["2 segments, sweeps forward"] == 2
    assert figures["32 segments, sweeps forward"] < 25
    assert all(value < 1e-4 for name, value in figures.items() if "error" in name)
    assert main(words) == 0
    assert "32 segments, sweeps backward: " in capsys.readouterr().out
