"""``swarmstep bench`` with real processes: what it prints and how it ends."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from rights import needs_network
from swarmstep.errors import CommError, UsageError
from swarmstep.microbench import workers
from swarmstep.microbench.overlap import ALONE, VARIANTS
from swarmstep.microbench.rounds import ACCELERATE, LIMITS
from swarmstep.microbench.scale import LIMITS as STRATEGIES
from swarmstep.microbench.wire import CODECS

pytestmark = pytest.mark.usefixtures("forked")

SMALL = ("--parameters", "10000", "--tensors", "8", "--repeats", "2", "--workers", "2")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "SWARMSTEP_TRACEBACK", workers.JOB):
        monkeypatch.delenv(name, raising=False)


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "swarmstep", "bench", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)


def result_of(*arguments: str) -> dict[str, Any]:
    done = bench(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout)


def check(row: dict[str, Any]) -> None:
    assert {*row} == {"name", "workers", "parameters", "median_seconds", "limit", "limit_seconds", "ratio"}
    assert row["median_seconds"] > 0
    if row["limit"] is None:
        assert row["limit_seconds"] is row["ratio"] is None
    else:
        assert math.isclose(row["ratio"], row["median_seconds"] / row["limit_seconds"])


def test_a_round_next_to_its_limits() -> None:
    result = result_of("round", *SMALL, "--seed", "3")
    assert {"cpus", "model", "python", "torch", "platform"} <= {*result["machine"]}
    rows = {row["name"]: row for row in result["rows"]}
    left_out = {row["name"] for row in result["skipped"]}
    assert {*rows, *left_out} == {*LIMITS}
    assert left_out <= {ACCELERATE}
    for name, row in rows.items():
        check(row)
        assert (row["workers"], row["parameters"], row["limit"]) == (2, 10_000, LIMITS[name])
        if row["limit"]:
            assert row["limit_seconds"] == rows[row["limit"]]["median_seconds"]


@pytest.mark.slow
def test_a_round_as_a_table() -> None:
    done = bench("round", *SMALL)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[2].split() == ["name", "workers", "parameters", "median", "limit", "limit's", "median", "ratio"]
    shown = [line for line in lines if line.startswith(tuple(LIMITS)) and " 10,000 " in line]
    assert len(shown) >= len(LIMITS) - 1
    assert "\x1b" not in done.stdout


@pytest.mark.slow
def test_the_small_cells_of_the_scale() -> None:
    result = result_of("scale", "--quick", "--repeats", "1", "--max-processes", "2")
    for row in result["rows"]:
        check(row)
        assert row["limit"]
    cells = {(row["name"], row["workers"], row["parameters"]) for row in result["rows"]}
    simulated = {(f"simulate {name}", count, 100_000) for name in STRATEGIES for count in (2, 4)}
    assert cells == simulated | {(f"round {name}", 2, 100_000) for name in STRATEGIES}
    (left,) = result["skipped"]
    assert (left["name"], left["workers"], left["parameters"]) == ("round", 4, None)
    assert left["skipped"] == "more processes than --max-processes 2"


def check_wire(result: dict[str, Any], workers: int, parameters: int) -> None:
    names = [row["name"] for row in result["rows"]]
    rounds = ["local-sgd", "pso-ps", *(f"local-sgd, {spec}" for spec in CODECS)]
    assert names == ["all-reduce", "broadcast, tree", "broadcast, chain", *rounds]
    for row in result["rows"]:
        check(row)
        assert (row["workers"], row["parameters"]) == (workers, parameters)
    assert [one["name"] for one in result["sent"]] == rounds
    for one in result["sent"]:
        assert one["metered"] == one["formula"], one


def test_the_wire_on_loopback_and_bytes_by_the_formula() -> None:
    result = result_of("wire", "--workers", "3", "--parameters", "10001", "--tensors", "8", "--repeats", "1")
    check_wire(result, 3, 10_001)
    assert {row["limit"] for row in result["rows"]} == {None, "local-sgd"}
    assert all(one["interface"] is None for one in result["sent"])


@pytest.mark.slow
@needs_network
@pytest.mark.parametrize("link", ["100mbit", "100mbit,5ms"])
def test_the_wire_between_namespaces_carries_what_is_metered(link: str) -> None:
    arguments = ("--workers", "4", "--parameters", "250000", "--repeats", "3", "--link", link)
    result = result_of("wire", *arguments)
    check_wire(result, 4, 250_000)
    assert {row["limit"] for row in result["rows"]} == {None, "local-sgd", "ideal"}
    for one in result["sent"]:
        assert abs(one["interface"] - one["metered"]) <= max(0.03 * one["metered"], 4000), one  # a barrier, too


@pytest.mark.slow
def test_the_speed_beside_no_communication() -> None:
    result = result_of("overlap", "--workers", "2", "--repeats", "1", "--ddp-steps", "2")
    rows = {row["name"]: row for row in result["rows"]}
    assert {*rows} == {ALONE, "ddp", "ddp, bfloat16", *VARIANTS}
    for name, row in rows.items():
        check(row)
        assert (row["parameters"], row["limit"]) == (1_015_690, None if name == ALONE else ALONE)


def test_sweeps_over_real_processes_as_in_process() -> None:
    words = ("sweep", "--workers", "2", "--length", "32", "--hidden", "8")
    assert result_of(*words)["figures"] == result_of(*words, "--backend", "sim")["figures"]


def children(process: int) -> list[int]:
    """Return the workers of a command, in the order in which they were started."""
    try:
        return [int(text) for text in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except OSError:
        return []


@pytest.fixture
def long_run() -> Any:
    command = [sys.executable, "-m", "swarmstep", "bench", "round", *SMALL, "--repeats", "10000"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while len(children(process.pid)) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    yield process
    process.kill()
    process.communicate()


@pytest.mark.skipif(
    not Path(f"/proc/self/task/{os.getpid()}/children").exists(), reason="no list of children here"
)
@pytest.mark.slow
@pytest.mark.parametrize("wait", [0.0, 4.0])
def test_a_worker_that_is_killed(long_run: subprocess.Popen[str], wait: float) -> None:
    """Before the workers have come together, and (most likely) while they measure."""
    time.sleep(wait)
    os.kill(children(long_run.pid)[1], signal.SIGKILL)
    out, err = long_run.communicate(timeout=60)
    assert (long_run.returncode, out) == (5, "")
    assert err == "swarmstep: rank 1 was ended by SIGKILL; nothing was measured\n"


@pytest.mark.skipif(
    not Path(f"/proc/self/task/{os.getpid()}/children").exists(), reason="no list of children here"
)
def test_an_interrupt_ends_all(long_run: subprocess.Popen[str]) -> None:
    started = children(long_run.pid)
    long_run.send_signal(signal.SIGINT)
    out, err = long_run.communicate(timeout=60)
    assert (long_run.returncode, out) == (130, "")
    assert err == "swarmstep: stopped on request, before all was measured\n"
    assert not [pid for pid in started if Path(f"/proc/{pid}").exists()]


def test_patience_ends() -> None:
    settings = {"parameters": 100, "tensors": 2, "repeats": 10**9, "seed": 0}
    with pytest.raises(CommError, match="not done after 1 s; a longer wait is set with --patience"):
        workers.start_group("round", 2, settings, patience=1.0)


def test_the_error_of_a_worker_is_that_of_the_command() -> None:
    with pytest.raises(UsageError, match=r"^--tensors: expected 1 to 3, the parameters; found 4$"):
        workers.start_group("round", 2, {"parameters": 3, "tensors": 4, "repeats": 1, "seed": 0}, patience=60.0)
