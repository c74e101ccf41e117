"""Measures what a workload costs a worker: a few rounds in this process."""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import time
from typing import Any

from swarmstep.errors import UsageError
from swarmstep.network.trace import Trace
from swarmstep.planner.prices import RoundWork, Work
from swarmstep.train.build import resolve
from swarmstep.train.config import Config
from swarmstep.train.in_process import simulated
from swarmstep.train.job import Job
from swarmstep.workloads import Workload

ROUNDS, STEPS = 8, 4  # of the trial: rounds, and steps between them
FIRST = 4  # rounds of it that may be longer: all workers are tested, or none of them has led yet
MOST = 500  # rounds of a longer one


def measured(config: Config, workload: Workload, codecs: tuple[str, ...] = ("int8",)) -> Work:
    """Return what a worker's step and rounds cost, after a few rounds in this process.

    Args:
        config: workload, model, strategy, workers and so on; its steps and n are not used.
        workload: its data.
        codecs: to measure besides no codec.

    Raises:
        UsageError: as a training with these settings does, or the method chooses by itself when to synchronize.
    """
    trials = {codec: _trial(config, workload, codec) for codec in ("", *codecs)}
    parameters = int(trials[""][1]["parameters"])
    step = statistics.median(seconds for events, _ in trials.values() for seconds in _step_seconds(events))
    rounds = {codec: _round(config, events) for codec, (events, _) in trials.items()}
    return Work(step, parameters, rounds, _bytes_kept(config, parameters))


def measured_step(config: Config, workload: Workload, seconds: float) -> float:
    """Return the wall-clock seconds of a local step of one worker in this process, while others are at it, too.

    Args:
        config: as in `measured`.
        workload: its data.
        seconds: to measure for, about.
    """
    alone = dataclasses.replace(config, workers=1, strategy="local-sgd", settings={})
    step = statistics.median(_step_seconds(_trial(alone, workload, "")[0]))
    rounds = max(ROUNDS, min(MOST, int(seconds / (STEPS * step))))
    landed = [event["at"] for event in _trial(alone, workload, "", rounds)[0] if event["kind"] == "round"]
    return statistics.median(after - before for before, after in itertools.pairwise(landed)) / STEPS


def _trial(
    config: Config, workload: Workload, codec: str, rounds: int = ROUNDS
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the events and the summary of a short run."""
    steps = rounds * STEPS
    short = dataclasses.replace(
        config, steps=steps, every=STEPS, when=None, eval_every=10 * steps, codec=codec or None, backend="sim",
        warmup=0, delay=0, until_accuracy=None,
    )  # fmt: skip
    events: list[dict[str, Any]] = []
    job = Job(quiet=True, keep=False, listen=lambda row: events.append({**row, "at": time.perf_counter()}))
    summary = simulated(resolve(short, workload), workload, job)
    return events, summary


def _step_seconds(events: list[dict[str, Any]]) -> list[float]:
    """Return the seconds of a step of each worker in each round but the first, which warms up."""
    rounds = [event for event in events if event["kind"] == "round"][1:]
    return [seconds / STEPS for event in rounds for seconds in event["compute_seconds"]]


def _round(config: Config, events: list[dict[str, Any]]) -> RoundWork:
    """Return a round as it is when the first ones are over: the one that sends most.

    In some rounds a worker has no partner, or nothing to tell, while others have.
    """
    trace = [*Trace([event["folded"] for event in events if event["kind"] == "trace"][-1])]
    if [round_.started for round_ in trace] != [STEPS * (k + 1) for k in range(ROUNDS)]:
        raise UsageError(
            f"plan: {config.strategy} does not synchronize in each n-th step, and has no n to plan; "
            "give another --strategy"
        )
    rounds = [event for event in events if event["kind"] == "round"]
    plain = [event["seconds"] - event["probe_seconds"] for event in rounds[FIRST:]]
    tests = [event["probe_seconds"] for event in rounds[1:] if event["probe_seconds"] > 0]
    calls = max((round_.calls for round_ in trace[FIRST:]), key=lambda calls: sum(call.bytes for call in calls))
    return RoundWork(calls, max(0.0, statistics.median(plain)), statistics.median(tests) if tests else 0.0)


def _bytes_kept(config: Config, parameters: int) -> int:
    """Return the bytes of model, gradient, optimizer state and what the method keeps, from its card."""
    from swarmstep.cards import CARDS

    states = {"sgd": 0, "momentum": 1, "muon": 1}.get(config.optimizer or "momentum", 2)
    kept = max(1.0, float(CARDS[config.strategy].memory))  # at least the copy that a round works on
    return int(4 * parameters * (2 + states + kept))
