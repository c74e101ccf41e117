"""Asynchronous nodes that are killed, stopped, replaced, the server among them: 100 seeded trials."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from asynchronous_trials import RESULTS, STEPS, WORKERS, Play, Pull, Trial, drawn, with_server
from swarmstep.asynchronous import SERVER, replay
from swarmstep.asynchronous.jobs import REASONS

AT_A_TIME = 3  # trials: much of their time is silence


def same(a: Any, b: Any) -> bool:
    """Whether two values are the same bit for bit."""
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def check(trial: Trial, done: dict[int, Any]) -> Counter[str]:
    """Check what must hold at the end of a trial; return how often what happened in it."""
    if trial.options is None:
        return check_layup(trial, done)
    state, order = done[SERVER]
    method, x = with_server(trial, pause=0.0)
    again = replay(method, x, order).states[SERVER]
    assert same(state, vars(again)), trial
    assert isinstance(method.work, Pull)
    seen = method.work.seen
    dropped = Counter((worker, number) for worker, number, _ in state["dropped"])
    assert max(seen.values()) == 1, trial
    assert sum(seen.values()) == RESULTS, trial
    assert max(dropped.values(), default=1) == 1, trial
    for worker in range(WORKERS):
        lost = {number for w, number, _ in state["dropped"] if w == worker}
        came = {number for w, number in seen if w == worker}
        stale = {number for w, number, reason in state["dropped"] if (w, reason) == (worker, "stale")}
        assert came & lost == stale, trial
        under_way = state["under_way"][worker]
        assert sorted([*(came | lost), *under_way]) == [*range(state["given"][worker])], trial
        assert state["entered"][worker] == len(came - lost), trial
        assert state["given"][worker] == state["entered"][worker] + len(lost) + len(under_way), trial
    if "quorum" in trial.options:  # whoever is there has a job, or waits for the close
        jobs, expected = len(state["idle"]), sum(state["here"])
    else:
        jobs, expected = len(state["free"]) + len(state["waiting"]), WORKERS
    assert sum(map(len, state["under_way"])) + jobs == expected, trial
    assert abs(float(state["x"].mean()) - 1) < 6, trial  # 8 at the start
    kinds = Counter(event.kind for event in order if event.kind in ("left", "joined"))
    return kinds + Counter(f"dropped: {reason}" for _, _, reason in state["dropped"])


def check_layup(trial: Trial, done: dict[int, Any]) -> Counter[str]:
    killed = {node for _, what, node in trial.acts if what == "kill"}
    assert {*range(WORKERS)} - killed <= {*done}, (trial, [*done])
    states = [state for state, _ in done.values() if state]
    for state in states:
        assert state["done"] == STEPS, trial
        assert state["x"].isfinite().all(), trial
        assert all(abs(state["x"] - 1) < 2), trial
        assert all(weight < 3 for weight in state["weights"]), trial
    return Counter({"layup": len(states)})


@pytest.mark.parametrize(
    "trial",
    [
        Trial({"assign": "pure", "wait": 3}, 8, [(10, "kill", 1), (40, "start", 1)]),
        pytest.param(
            Trial({"assign": "shuffled"}, 8, [(20, "stop", 2), (60, "replace", 0)]), marks=pytest.mark.slow
        ),
        Trial({"assign": "random", "ignore": 3}, 8, [(11, "kill", 0), (30, "replace", -1)]),
        Trial({"quorum": 2, "grace": 0.01}, 8, [(10, "kill", 1), (30, "replace", -1)]),
        Trial(None, 0, [(10, "replace", 0), (20, "kill", 2)]),
    ],
    ids=["rounds", "shuffled", "server", "quorum", "layup"],
)
def test_others_go_on(trial: Trial) -> None:
    found = check(trial, Play(trial).run())
    if trial.options is not None:
        assert found["left"] >= 1


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_100_trials() -> None:
    trials = [drawn(seed) for seed in range(100)]
    found: Counter[str] = Counter()
    with ThreadPoolExecutor(AT_A_TIME) as threads:
        for trial, done in zip(trials, threads.map(lambda trial: Play(trial).run(), trials), strict=True):
            found += check(trial, done)
    print(dict(found))
    reasons = [f"dropped: {reason}" for reason in REASONS]
    assert all(found[what] >= 20 for what in ("left", "joined", *reasons))
