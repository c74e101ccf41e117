"""Runs with --balance: stopped and resumed, which example goes where, and what is refused."""

from __future__ import annotations

import dataclasses
import itertools
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from balanced import COSTS
from examples import few
from runs import WORKLOADS, resolved, rows, same_run, train
from swarmstep import Balanced, Comm, Every, LocalSGD, Synchronizer, simulate
from swarmstep.errors import CheckpointError, UsageError
from swarmstep.train.feed import Feed
from swarmstep.train.work_share import WorkShare
from whole_runs import fast_if

SPEEDS = "1,2,4"


@pytest.mark.parametrize(
    "fields",
    [
        fast_if(False, {"balance": "batch", "strategy": "synchronous"}),
        fast_if(False, {"balance": "batch", "strategy": "local-sgd", "max_batch": "7,9,9"}),
        {"balance": "batch", "strategy": "diloco", "delay": 2, "codec": "int8", "fragments": 2},
        {"balance": "batch", "strategy": "swarm", "when": "warmup:6,every:3", "shards": "dealt"},
        fast_if(False, {"balance": "steps", "strategy": "local-sgd", "every": 3}),
        {"balance": "steps", "strategy": "swarm", "when": "every:5", "schedule": "cosine", "warmup": 4},
    ],
    ids=str,
)
def test_a_stopped_run_goes_on_as_if_nothing_had_been(fields: dict[str, Any], tmp_path: Path) -> None:
    fields = {**fields, "speeds": SPEEDS, "batch": 6, "steps": 44, "eval_every": 7}
    train(fields, tmp_path / "whole")
    for i, stop in enumerate((3, 16, 31)):
        assert "on all ranks" in train(fields, tmp_path / "parts", stop_at=stop, resume=i > 0)["interrupted"]
    summary = train(fields, tmp_path / "parts", resume=True)
    same_run(tmp_path / "whole", tmp_path / "parts")
    assert summary["steps_taken"] == 44
    cost = [c * share for c, share in zip(COSTS, summary["shares"], strict=True)]
    if "max_batch" in fields:  # of 18: at speeds 1, 1/2, 1/4 without a limit 10, 5 and 3
        assert summary["shares"] == [7, 7, 4]
    else:
        assert max(cost) <= 1.5 * min(cost)  # whole steps; equal shares: 4 times
    looks = [row for row in rows(tmp_path / "whole") if row["kind"] == "look"]
    assert [*looks[-1]["shares"]] == summary["shares"]


def drawn(config: Any, cost: tuple[float, ...]) -> list[list[tuple[int, int, float]]]:
    """Return (first place, end, weight) of each step of each worker of a run, without the training."""

    def work(comm: Comm) -> list[tuple[int, int, float]]:
        sync = Synchronizer(nn.Linear(1, 1), LocalSGD(when=_trigger(config)), comm)
        share, found = WorkShare(config, sync), list[tuple[int, int, float]]()
        while share.taken < config.steps:
            assert share.places is not None
            assert 1 <= share.step <= config.steps
            weight = share.weight
            found.append((*share.places, weight))
            sync.step(1.0, weight=weight)
            share.worked(0.0)
            if share.together and share.taken % 5 < share.stride:
                mine = torch.tensor(share.measurement() * cost[comm.rank], dtype=torch.float64)
                share.update(comm.gather(mine).flatten().tolist())
        sync.finish()
        return found

    return simulate(work, config.workers)


def _trigger(config: Any) -> Any:
    return Balanced(config.every) if config.balance == "steps" else Every(config.every)


@few
@given(
    st.sampled_from(["batch", "steps"]),
    st.integers(1, 9),
    st.integers(1, 7),
    st.integers(1, 40),
    st.tuples(*[st.floats(0.01, 100.0)] * 3),
)
def test_no_example_is_lost_or_doubled(
    balance: str, batch: int, every: int, steps: int, cost: tuple[float, ...]
) -> None:
    fields = {"balance": balance, "speeds": "1,1,1", "batch": batch, "every": every, "steps": steps}
    config = resolved(WORKLOADS["classes"](), {"strategy": "local-sgd", **fields})
    stretches = sorted(step for worker in drawn(config, cost) for step in worker)
    assert [first for first, _, _ in stretches] == [0, *(end for _, end, _ in stretches[:-1])]
    assert stretches[-1][1] == 3 * steps * batch
    assert all(weight == end - first for first, end, weight in stretches)


def test_the_feed_draws_from_the_common_stream() -> None:
    workload = dataclasses.replace(WORKLOADS["classes"](), augment=None)
    config = resolved(workload, {"strategy": "local-sgd", "balance": "batch", "speeds": SPEEDS})
    feeds = [Feed(config, workload, rank, torch.device("cpu")) for rank in range(3)]
    ends = (0, 50, 60, 102)  # 102 of 120 examples are trained on
    stretches = itertools.pairwise(ends)
    parts = [feed.batch(1, places)[0] for feed, places in zip(feeds, stretches, strict=True)]
    assert [len(part) for part in parts] == [50, 10, 42]
    assert len(torch.cat(parts).unique(dim=0)) == 102


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"balance": "batch"}, "equally fast; expected --speeds, such as"),
        ({"speeds": "1,2"}, "--speeds: expected 3 numbers from 0.001 to 1000.* such as 1,1,3; found '1,2'"),
        ({"speeds": "1,2,x"}, "--speeds: expected 3 numbers"),
        ({"speeds": "1,2,0"}, "--speeds: expected 3 numbers"),
        (
            {"balance": "time", "when": "time:3", "backend": "gloo", "elastic": "local", "delay": 1},
            "--elastic measures .* no --delay",
        ),
        (
            {"balance": "batch", "delay": 1, "backend": "gloo", "elastic": "local"},
            "--elastic measures .* no --delay",
        ),
        ({"balance": "batch", "shards": "contiguous"}, "expected --shards iid, found contiguous"),
        ({"balance": "batch", "strategy": "ddp", "backend": "gloo"}, "ddp .*; expected synchronous"),
        ({"balance": "batch", "strategy": "independent"}, "independent does not count workers .*diloco"),
        ({"balance": "steps", "strategy": "median"}, "median does not count workers by their examples"),
        ({"balance": "steps", "strategy": "synchronous"}, "averages every step; expected --balance batch"),
        ({"balance": "steps", "delay": 1}, "expected no --delay and no --fragments"),
        ({"balance": "steps", "fragments": 2}, "expected no --delay and no --fragments"),
        ({"balance": "steps", "when": "change:0.3"}, "expected --every N, found --when change:0.3"),
        ({"balance": "time", "every": 3}, "--balance time: expected --when time:SECONDS, found --every"),
        ({"balance": "time", "when": "time:3", "shards": "dealt"}, "expected --shards iid, found dealt"),
        ({"balance": "time", "when": "time:3", "delay": 1}, "expected no --delay and no --fragments"),
        ({"balance": "steps", "when": "every:x"}, "unknown trigger 'every:x'; expected "),
        ({"balance": "batch", "max_batch": "9,9"}, "--max-batch: expected 3 whole numbers of at least 2.*'9,9'"),
        ({"balance": "batch", "max_batch": "9,9,1"}, "--max-batch: expected 3 whole numbers of at least 2"),
        (
            {"balance": "batch", "batch": 8, "max_batch": "9,9,4"},
            "hold 22 .* the 24 of a step; expected --batch .* 7",
        ),
        ({"balance": "steps", "max_batch": "9,9,9"}, "--max-batch: expected --balance batch, .*found steps"),
        (
            {"balance": "batch", "batch": 8, "max_batch": "9,9,7", "backend": "gloo", "elastic": "local"},
            "with --elastic any worker may be left alone; expected at least 8 each",
        ),
        ({"balance": "much"}, "balance"),
    ],
    ids=str,
)
def test_what_does_not_go_is_refused_before_the_first_step(fields: dict[str, Any], words: str) -> None:
    real = {} if len(fields) == 1 or "backend" in fields else {"speeds": SPEEDS}
    with pytest.raises(UsageError, match=words):
        resolved(WORKLOADS["classes"](), {**real, **fields})


def test_the_shares_belong_to_the_workers(tmp_path: Path) -> None:
    fields = {"strategy": "local-sgd", "balance": "batch", "speeds": SPEEDS}
    train(fields, tmp_path, stop_at=3)
    with pytest.raises(CheckpointError, match=re.escape("speeds: expected '1,2', found '1,2,4'")):
        train({**fields, "workers": 2, "speeds": "1,2"}, tmp_path, resume=True)
    real = {**fields, "backend": "gloo", "speeds": None}
    train(real, tmp_path / "real", stop_at=3)
    with pytest.raises(UsageError, match="--workers 2: expected 3, as the run has; with --balance batch"):
        train({**real, "workers": 2}, tmp_path / "real", resume=True)


@pytest.mark.parametrize("strategy", [pytest.param("local-sgd", marks=pytest.mark.slow), "swarm"])
def test_by_time_each_takes_as_many_steps_as_fit(strategy: str, tmp_path: Path) -> None:
    fields = {"strategy": strategy, "balance": "time", "when": "time:8", "speeds": SPEEDS, "steps": 60, "seed": 1}
    fields |= {"eval_every": 9, "schedule": "cosine", "shards": "contiguous"}
    summary = train(fields, tmp_path / "whole")
    rounds = [row for row in rows(tmp_path / "whole") if row["kind"] == "round"]
    assert all(row["weights"] == [32.0, 16.0, 8.0] for row in rounds)  # 8, 4 and 2 steps of 4 examples
    assert [row["steps"] for row in summary["by_worker"]] == [8 * 13, 4 * 13, 2 * 13]
    assert (summary["steps_taken"], summary["seconds"]) == (60, 8.0 * 13)
    for i, stop in enumerate((3, 31)):
        assert "on all ranks" in train(fields, tmp_path / "parts", stop_at=stop, resume=i > 0)["interrupted"]
    train(fields, tmp_path / "parts", resume=True)
    same_run(tmp_path / "whole", tmp_path / "parts")
