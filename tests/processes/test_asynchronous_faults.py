"""Asynchronous nodes that are killed, stopped, replaced, the server among them: 100 seeded trials."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from asynchronous_trials import Play, Trial, check, drawn
from swarmstep.asynchronous.asgrad import REASONS

AT_A_TIME = 3  # trials: much of their time is silence


@pytest.mark.parametrize(
    "trial",
    [
        Trial({"assign": "pure", "wait": 3}, 8, [(10, "kill", 1), (40, "start", 1)]),
        Trial({"assign": "shuffled"}, 8, [(20, "stop", 2), (60, "replace", 0)]),
        Trial({"assign": "random", "ignore": 3}, 8, [(11, "kill", 0), (30, "replace", -1)]),
        Trial(None, 0, [(10, "replace", 0), (20, "kill", 2)]),
    ],
    ids=["rounds", "shuffled", "server", "layup"],
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
