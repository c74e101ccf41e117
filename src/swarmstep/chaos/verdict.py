"""The summary of a run with faults, and what is wrong with it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from swarmstep.chaos.consistency import lost_rounds, unplanned_deaths, wiped_states
from swarmstep.chaos.recovery import PHASES, FaultOutcome, fault_outcomes
from swarmstep.chaos.run_record import RunRecord
from swarmstep.chaos.schedule import KINDS
from swarmstep.chaos.throughput import live_seconds, lost_steps, throughput, worker_steps

MAX_DEVIATIONS = 2.0  # of the final loss above the mean of the fault-free losses, in standard deviations
MIN_THROUGHPUT, MODERATE = 0.95, 120.0  # least throughput_ratio, up to so many faults an hour


def summarize(
    run: RunRecord, baseline: RunRecord | None, final_loss: float | None, losses: Sequence[float]
) -> dict[str, Any]:
    """Return the summary of a run with faults.

    Args:
        run: with faults.
        baseline: the same run without faults; None if it was not made.
        final_loss: test loss of the run's model; None if it did not finish.
        losses: of the fault-free runs.
    """
    outcomes = fault_outcomes(run)
    recovered = [outcome.recovered for outcome in outcomes if outcome.recovered is not None]
    rounds = run.rounds
    seconds = rounds[-1].time - rounds[0].time if rounds else 0.0
    return {
        "scheduled": run.scheduled,
        "given_up": run.scheduled - len(outcomes),
        "faults": len(outcomes),
        "survived": sum(outcome.survived for outcome in outcomes),
        "unplanned_deaths": [name for one in (baseline, run) if one for name in unplanned_deaths(one)],
        "digest": any(entry.digest is not None for entry in run.joined),
        "wiped_states": wiped_states(run),
        "committed_rounds": len(rounds),
        "lost_rounds": lost_rounds(run),
        "recover_seconds_median": statistics.median(recovered) if recovered else None,
        "recover_seconds_max": max(recovered, default=None),
        "throughput_ratio": throughput(run) / throughput(baseline) if baseline else None,
        "final_loss": final_loss,
        "fault_free_loss": statistics.fmean(losses) if losses else None,
        "fault_free_deviation": statistics.stdev(losses) if len(losses) > 1 else None,
        "committed_steps": rounds[-1].step if rounds else 0,
        "seconds": seconds,
        "live_workers": live_seconds(run, rounds[0].time, rounds[-1].time) / seconds if seconds else None,
        "participating_workers": statistics.fmean(len(r.members) for r in rounds) if rounds else None,
        "averaged_workers": statistics.fmean(r.averaged for r in rounds) if rounds else None,
        "lost_worker_steps": lost_steps(run),
        "committed_worker_steps": worker_steps(run),
        "restarts": sum(row["kind"] == "ended" and row["lost"] for row in run.rows),
        "epochs": len({entry.epoch for entry in run.joined}),
        "kinds": {kind: row for kind in KINDS if (row := _of_kind(kind, outcomes))["faults"]},
    }


def _of_kind(kind: str, outcomes: Sequence[FaultOutcome]) -> dict[str, Any]:
    of_kind = [outcome for outcome in outcomes if outcome.fault.kind == kind]
    row: dict[str, Any] = {"faults": len(of_kind), "survived": sum(outcome.survived for outcome in of_kind)}
    for name in PHASES:
        values = [value for outcome in of_kind if (value := getattr(outcome, name)) is not None]
        row[name] = {"median": statistics.median(values), "max": max(values)} if values else None
    return row


def complaints(summary: Mapping[str, Any], per_hour: float) -> list[str]:
    """Return what is wrong with a run, one sentence each.

    Every scheduled fault must be injected and survived; no other worker may die, no state be wiped, no committed
    round be lost. The final loss may exceed the mean of the fault-free runs by at most MAX_DEVIATIONS of their
    standard deviations (a lower loss is fine). Up to MODERATE faults an hour, the throughput per live worker must
    be at least MIN_THROUGHPUT of the fault-free one.
    """
    given_up, wiped, lost = (summary[name] for name in ("given_up", "wiped_states", "lost_rounds"))
    not_survived, deaths = summary["faults"] - summary["survived"], summary["unplanned_deaths"]
    checks = {
        f"{given_up} of {summary['scheduled']} scheduled faults were not injected": given_up,
        f"{not_survived} of {summary['faults']} faults were not survived": not_survived,
        f"{len(deaths)} workers died without being killed: {', '.join(deaths)}": deaths,
        f"{wiped} times a worker joined with a state other than the group's": wiped,
        f"{lost} committed rounds were lost": lost,
        "no round was committed": not summary["committed_rounds"],
    }
    return [text for text, wrong in checks.items() if wrong] + _loss(summary) + _throughput(summary, per_hour)


def _loss(summary: Mapping[str, Any]) -> list[str]:
    loss, mean, deviation = (summary[name] for name in ("final_loss", "fault_free_loss", "fault_free_deviation"))
    if loss is None:
        return ["the run did not finish"]
    if mean is None or deviation is None or loss <= mean + MAX_DEVIATIONS * deviation:
        return []
    return [f"the final loss {loss:.4f} is above {mean:.4f} by more than {MAX_DEVIATIONS:g} x {deviation:.4f}"]


def _throughput(summary: Mapping[str, Any], per_hour: float) -> list[str]:
    ratio = summary["throughput_ratio"]
    if per_hour > MODERATE or ratio is None or ratio >= MIN_THROUGHPUT:
        return []
    return [f"the throughput per live worker is {ratio:.3f} of the fault-free one, below {MIN_THROUGHPUT:g}"]
