"""Virtual time: of the workers of `simulate`, and of runs with --speeds."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from runs import rows, same_run, train
from swarmstep import Group, simulate
from swarmstep.errors import UsageError
from swarmstep.network.speeds import Speeds
from swarmstep.train.config import Config
from swarmstep.train.speed_options import HORIZON, parse_speeds

SPEEDS = "1,2,4"  # virtual seconds of a step


def test_time_moves_by_itself_and_in_a_collective_to_the_last() -> None:
    def work(comm: Group) -> list[float]:
        seen = [comm.clock()]
        comm.elapse(1.5 + comm.rank)
        torch.randn(300, 300) @ torch.randn(300, 300)  # takes none
        seen.append(comm.clock())
        comm.mean(torch.zeros(2))
        seen.append(comm.clock())
        part = comm.split(comm.rank // 2)
        comm.elapse(float(comm.rank))
        part.gather(torch.zeros(1))
        return [*seen, comm.clock()]

    found = simulate(work, 4, virtual_time=True)
    assert found == [
        [0.0, 1.5, 4.5, 5.5],
        [0.0, 2.5, 4.5, 5.5],
        [0.0, 3.5, 4.5, 7.5],
        [0.0, 4.5, 4.5, 7.5],
    ]


def test_what_is_started_costs_time_only_where_its_result_is_waited_for() -> None:
    def work(comm: Group) -> list[float]:
        comm.elapse(float(comm.rank))
        pending = comm.start(lambda: comm.mean(torch.ones(1)))  # complete when the last has started: at 2
        seen = [comm.clock()]
        comm.elapse(1.0)
        pending.result()
        seen.append(comm.clock())
        pending.result()
        return [*seen, comm.clock()]

    assert simulate(work, 3, virtual_time=True) == [[0.0, 2.0, 2.0], [1.0, 2.0, 2.0], [2.0, 3.0, 3.0]]


def test_without_virtual_time_the_clock_is_the_workers_own() -> None:
    def work(comm: Group) -> float:
        began = comm.clock()
        if comm.rank == 0:
            torch.linalg.inv(torch.randn(400, 400))
        comm.mean(torch.zeros(1))
        return comm.clock() - began

    first, second = simulate(work, 2)
    assert second < first


@pytest.mark.parametrize(
    ("fields", "seconds"),
    [
        ({"strategy": "local-sgd", "every": 4}, 12 * 4),
        ({"strategy": "synchronous"}, 12 * 4),
        ({"strategy": "independent"}, 12 * 4),  # until the last has finished
        ({"strategy": "local-sgd", "every": 7, "balance": "steps", "steps": 210}, 3 * 210 / (1 + 1 / 2 + 1 / 4)),
    ],
    ids=str,
)
def test_a_run_takes_as_long_as_its_slowest(fields: dict[str, Any], seconds: float, tmp_path: Path) -> None:
    summary = train({"speeds": SPEEDS, "steps": 12, "eval_every": 100, **fields}, tmp_path)
    assert summary["seconds"] == pytest.approx(seconds, rel=0.06)  # the first rounds of a balanced run are equal
    if "balance" not in fields:
        assert summary["compute_seconds"] == 12 * (1 + 2 + 4) / 3
    if fields["strategy"] == "local-sgd" and "balance" not in fields:
        written = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
        rounds = [row for row in written if row["kind"] == "round" and row["step"] > 4]
        assert [row["compute_seconds"] for row in rounds] == [[4.0, 8.0, 16.0]] * 2
        assert [row["wait_seconds"] for row in rounds] == [[12.0, 8.0, 0.0]] * 2  # of the round before


def test_rounds_by_time_are_reproducible(tmp_path: Path) -> None:
    fields = {"speeds": SPEEDS, "steps": 20, "strategy": "diloco", "when": "time:9"}
    summary = train(fields, tmp_path / "whole")
    assert [row["step"] for row in rows(tmp_path / "whole") if row["kind"] == "round"] == [3, 6, 9, 12, 15, 18]
    assert summary["seconds"] == 80
    train(fields, tmp_path / "parts", stop_at=11)
    train(fields, tmp_path / "parts", resume=True)
    same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_disturbed_worker_costs_the_others_as_much_as_it_waits_for() -> None:
    fields = {"strategy": "local-sgd", "every": 4, "steps": 40, "eval_every": 100}
    assert train({**fields, "speeds": "1,1,1"}, None)["seconds"] == 40
    disturbed = train({**fields, "disturb": "1:10-14:5,1:20-25:inf"}, None)
    # In 4 s it does 0.8 steps' work in place of 4, in 5 s none.
    assert disturbed["seconds"] == pytest.approx(40 + 3.2 + 5)
    assert [row["compute_seconds"] for row in disturbed["by_worker"]] == pytest.approx([40, 48.2, 40])


def test_random_disturbances_and_jitter_follow_from_the_seed() -> None:
    def speeds(seed: int) -> Speeds:
        return parse_speeds(Config("digits", workers=3, disturb="random:60:10:4", jitter=0.3, seed=seed))

    drawn = speeds(1)
    assert drawn == speeds(1)
    assert drawn != speeds(2)
    for worker in range(3):
        own = [one for one in drawn.disturbances if one.worker == worker]
        assert len(own) == pytest.approx(HORIZON / (60 + 10), rel=0.1)
        assert all(one.end - one.start == pytest.approx(10) and one.factor == 4 for one in own)
        assert all(one.end < two.start for one, two in itertools.pairwise(own))
    seconds = [drawn.duration(0, 0.0, 1.0, number) for number in range(200)]
    assert 0.7 < min(seconds) < 0.72
    assert sum(seconds) / 200 == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"jitter": 1.0}, "--jitter: expected 0 to below 1, found 1"),
        ({"disturb": "0:60-120"}, "--disturb: expected WORKER:FROM-TO:FACTOR.*; found '0:60-120'"),
        ({"disturb": "0:60-x:2"}, "--disturb: expected WORKER"),
        ({"disturb": "random:0:1:2"}, "--disturb: expected WORKER"),
        ({"disturb": "3:1-2:2"}, "--disturb: expected a worker from 0 to 2"),
        ({"disturb": "0:2-1:2"}, "FROM before TO"),
        ({"disturb": "0:1-2:0.5"}, "a factor of at least 1"),
    ],
)
def test_what_cannot_be_played_is_refused_by_name(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        train(fields, None)
