"""What a storm's events come to."""

from __future__ import annotations

import itertools
import math
import signal
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from swarmstep.chaos.event_log import Event, Joined, Landed, Saved, Struck, slot_of
from swarmstep.chaos.schedule import AWAY, KINDS

DEVIATIONS = 2.0  # standard deviations of the fault-free losses that the final loss may lie above their mean
PHASES = ("noticed", "regrouped", "recovered")  # fields of a FaultOutcome
RATIO, GENTLE = 0.95, 120.0  # least throughput_ratio, up to so many faults an hour


class FaultOutcome(NamedTuple):
    """What became of a fault."""

    fault: Struck
    survived: bool
    recovered: float | None  # seconds
    noticed: float | None  # seconds until the survivors began to regroup
    regrouped: float | None  # seconds that they took for it, the slowest of them


class Ride(NamedTuple):
    """A run as its files tell it."""

    events: Sequence[Event]
    rows: Sequence[Mapping[str, Any]]  # the storm's own
    faults: Sequence[Struck] = ()
    scheduled: int = 0  # faults, struck or not

    @property
    def joined(self) -> list[Joined]:
        """Who entered which epoch."""
        return [event for event in self.events if isinstance(event, Joined)]

    @property
    def rounds(self) -> list[Landed]:
        """Each committed round once, as the first who wrote it down did, in order."""
        first: dict[int, Landed] = {}
        for event in self.events:
            if isinstance(event, Landed):
                first.setdefault(event.round, event)
        return [first[number] for number in sorted(first)]


def lost_rounds(ride: Ride) -> int:
    """Return how many committed rounds are not continued.

    Every round from 1 to the last was written down, with a step above that of the one before and in no earlier
    epoch; by all who did so with the same step, epoch, members and digest (which a worker that writes it down
    late, in another group, does not have any more). Every number for which that is not so counts.
    """
    told: dict[int, set[tuple[int, int, tuple[str, ...]]]] = defaultdict(set)
    prints: dict[int, set[float]] = defaultdict(set)
    for event in ride.events:
        if isinstance(event, Landed):
            told[event.round].add((event.step, event.epoch, event.members))
            prints[event.round] |= set() if event.print is None else {event.print}
    first = {0: (0, 0)} | {landed.round: (landed.step, landed.epoch) for landed in ride.rounds}
    lost = 0
    for number in range(1, max(told, default=0) + 1):
        step, epoch = first.get(number, (0, 0))
        step_before, epoch_before = first.get(number - 1, (0, 0))
        follows = step > step_before and epoch >= epoch_before
        lost += not follows or len(told[number]) > 1 or len(prints[number]) > 1
    return lost


def wiped_states(ride: Ride) -> int:
    """Return how many entries into a group found another state than the run had.

    A worker entered an epoch with a digest that a member who was there before does not have; or where nobody was
    there before, though the run had begun; or behind a round that was committed in an earlier epoch.
    """
    had: dict[int, float | None] = {}
    for entry in ride.joined:
        if not entry.newcomer:
            had.setdefault(entry.epoch, entry.print)
    first = min((entry.epoch for entry in ride.joined), default=0)
    wiped, rounds = 0, ride.rounds
    for entry in ride.joined:
        behind = any(landed.epoch < entry.epoch and landed.round > entry.round for landed in rounds)
        alone = entry.epoch > first and entry.epoch not in had
        wiped += behind or alone or entry.print != had.get(entry.epoch, entry.print)
    return wiped


def unplanned_deaths(ride: Ride) -> list[str]:
    """Return the workers that were lost though no kill had struck them, each with how it ended."""
    killed = {fault.worker for fault in ride.faults if fault.kind == "kill"}
    ends = [(row["worker"], row["code"]) for row in ride.rows if row["kind"] == "ended" and row["lost"]]
    return [
        f"{worker} ({signal.Signals(-code).name if code < 0 else f'exit code {code}'})"
        for worker, code in ends
        if worker not in killed or code != -signal.SIGKILL
    ]


def fates(ride: Ride) -> list[FaultOutcome]:
    """Return what became of each fault.

    It has recovered with the first round committed after it that does not wait for the victim: one of whose
    members the victim, by its name, is none, or the first after the fault was over. With slow and disk, which
    take nobody out of the group, that is the second round after the strike, since the first may have begun before.

    It was survived if it has recovered, if a victim of kill, stop or cut was a member of a round again after the
    fault was over (under whatever name), and if after a full disk in which checkpoints failed one was written.
    """
    return [_fate(fault, ride) for fault in ride.faults]


def _fate(fault: Struck, ride: Ride) -> FaultOutcome:
    after = [landed for landed in ride.rounds if landed.time > fault.time]
    if fault.kind in AWAY:
        found = (r for r in after if fault.worker not in r.members or r.time > fault.until)
    else:
        found = iter(after[1:])
    recovery = next(found, None)
    noticed = regrouped = None
    if recovery and fault.kind in AWAY and fault.worker not in recovery.members:
        entries = [entry for entry in ride.joined if entry.epoch == recovery.epoch and not entry.newcomer]
        entries = [entry for entry in entries if entry.time > fault.time]
        if entries:
            noticed = min(entry.time - entry.seconds for entry in entries) - fault.time
            regrouped = max(entry.seconds for entry in entries)
    back = fault.kind not in AWAY or any(
        landed.time > fault.until and any(slot_of(name) == fault.slot for name in landed.members)
        for landed in after
    )
    survived = recovery is not None and back and _saved_again(fault, ride.events)
    return FaultOutcome(fault, survived, recovery.time - fault.time if recovery else None, noticed, regrouped)


def _saved_again(fault: Struck, events: Sequence[Event]) -> bool:
    """Return whether checkpoints that failed while this disk was full are written after it."""
    if fault.kind != "disk":
        return True
    saved = [event for event in events if isinstance(event, Saved) and event.time > fault.time]
    failed = any(event.why and event.time <= fault.until for event in saved)
    return not failed or any(not event.why and event.time > fault.until for event in saved)


def live_seconds(ride: Ride, begin: float, end: float) -> float:
    """Return for how long workers were live, added up over all slots, between two times.

    A worker is live from its first word in a group (it joined, or landed a round) until its process ends or a
    kill, stop or cut strikes it; then again from its next word after the fault was over. One that starts, waits to
    be let in or is slow counts for nothing, for nothing and in full.
    """
    ends = [(row["time"], row["slot"]) for row in ride.rows if row["kind"] == "ended"]
    ends += [(fault.time, fault.slot) for fault in ride.faults if fault.kind in AWAY]
    away = [fault for fault in ride.faults if fault.kind in AWAY]
    words = [
        (event.time, slot_of(event.worker))
        for event in ride.events
        if not isinstance(event, Saved)
        and not any(f.worker == event.worker and f.time <= event.time <= f.until for f in away)
    ]
    total = 0.0
    for slot in {slot for _, slot in words}:
        changes = sorted([(t, True) for t, s in words if s == slot] + [(t, False) for t, s in ends if s == slot])
        for (since, live), (until, _) in itertools.pairwise([*changes, (math.inf, False)]):
            total += max(0.0, min(until, end) - max(since, begin)) if live else 0.0
    return total


def worker_steps(ride: Ride) -> int:
    """Return how many local steps went into the committed rounds after the first, of all workers.

    A member's steps in a round are those since the round before, or since it joined.
    """
    since = {(entry.epoch, entry.worker): entry.step for entry in ride.joined if entry.newcomer}
    return sum(
        landed.step - max(before.step, since.get((landed.epoch, name), 0))
        for before, landed in itertools.pairwise(ride.rounds)
        for name in landed.members
    )


def throughput(ride: Ride) -> float:
    """Return the committed local steps per second and live worker, from the first committed round to the last."""
    rounds = ride.rounds
    seconds = live_seconds(ride, rounds[0].time, rounds[-1].time) if rounds else 0.0
    return worker_steps(ride) / seconds if seconds else math.nan


def lost_steps(ride: Ride) -> int:
    """Return how many local steps were rolled back, at most: those since the last round of all who left."""
    return sum(
        (landed.step - before.step) * len(set(before.members) - set(landed.members))
        for before, landed in itertools.pairwise(ride.rounds)
    )


def summarize(
    ride: Ride, baseline: Ride | None, final_loss: float | None, losses: Sequence[float]
) -> dict[str, Any]:
    """Return what a storm comes to.

    Args:
        ride: the storm.
        baseline: the same run without faults (None: it was not made).
        final_loss: test loss of the storm's model (None: it did not end well).
        losses: of the fault-free runs.
    """
    outcome = fates(ride)
    recovered = [fate.recovered for fate in outcome if fate.recovered is not None]
    rounds = ride.rounds
    seconds = rounds[-1].time - rounds[0].time if rounds else 0.0
    mean = statistics.fmean(losses) if losses else None
    spread = statistics.stdev(losses) if len(losses) > 1 else None
    return {
        "scheduled": ride.scheduled,
        "given_up": ride.scheduled - len(outcome),
        "faults": len(outcome),
        "survived": sum(fate.survived for fate in outcome),
        "unplanned_deaths": [name for one in (baseline, ride) if one for name in unplanned_deaths(one)],
        "digest": any(entry.print is not None for entry in ride.joined),
        "wiped_states": wiped_states(ride),
        "committed_rounds": len(rounds),
        "lost_rounds": lost_rounds(ride),
        "recover_seconds_median": statistics.median(recovered) if recovered else None,
        "recover_seconds_max": max(recovered, default=None),
        "throughput_ratio": throughput(ride) / throughput(baseline) if baseline else None,
        "final_loss": final_loss,
        "fault_free_loss": mean,
        "fault_free_deviation": spread,
        "committed_steps": rounds[-1].step if rounds else 0,
        "seconds": seconds,
        "live_workers": live_seconds(ride, rounds[0].time, rounds[-1].time) / seconds if seconds else None,
        "participating_workers": statistics.fmean(len(r.members) for r in rounds) if rounds else None,
        "averaged_workers": statistics.fmean(r.averaged for r in rounds) if rounds else None,
        "lost_worker_steps": lost_steps(ride),
        "committed_worker_steps": worker_steps(ride),
        "restarts": sum(row["kind"] == "ended" and row["lost"] for row in ride.rows),
        "epochs": len({entry.epoch for entry in ride.joined}),
        "kinds": {kind: _of_kind(kind, outcome) for kind in KINDS if any(f.fault.kind == kind for f in outcome)},
    }


def _of_kind(kind: str, outcome: Sequence[FaultOutcome]) -> dict[str, Any]:
    mine = [fate for fate in outcome if fate.fault.kind == kind]
    found: dict[str, Any] = {"faults": len(mine), "survived": sum(fate.survived for fate in mine)}
    for name in PHASES:
        values = [value for fate in mine if (value := getattr(fate, name)) is not None]
        found[name] = {"median": statistics.median(values), "max": max(values)} if values else None
    return found


def complaints(summary: Mapping[str, Any], per_hour: float) -> list[str]:
    """Return what is not as it should be, one sentence each.

    Every fault of the schedule is struck and survived, nobody else dies, no state is wiped and no committed round
    lost; the final loss is not above that of the
    fault-free runs by more than DEVIATIONS of their standard deviations (a lower one is no complaint); and up to
    GENTLE faults an hour the throughput per live worker is at least RATIO of the fault-free one.
    """
    given_up, wiped, lost = (summary[name] for name in ("given_up", "wiped_states", "lost_rounds"))
    perished, deaths = summary["faults"] - summary["survived"], summary["unplanned_deaths"]
    found = {
        f"{given_up} of {summary['scheduled']} faults of the schedule were not struck": given_up,
        f"{perished} of {summary['faults']} faults were not survived": perished,
        f"{len(deaths)} workers died that no kill had struck: {', '.join(deaths)}": deaths,
        f"{wiped} times a worker entered with another state than the group's": wiped,
        f"{lost} committed rounds are not continued": lost,
    }
    said = [text for text, wrong in found.items() if wrong]
    loss, mean, spread = (summary[name] for name in ("final_loss", "fault_free_loss", "fault_free_deviation"))
    if not summary["committed_rounds"]:
        said.append("no round was committed")
    if loss is None:
        said.append("the run did not come to its end")
    elif mean is not None and spread is not None and not loss <= mean + DEVIATIONS * spread:
        said.append(f"the final loss {loss:.4f} is above {mean:.4f} by more than {DEVIATIONS:g} x {spread:.4f}")
    ratio = summary["throughput_ratio"]
    if per_hour <= GENTLE and ratio is not None and not ratio >= RATIO:
        said.append(f"the throughput per live worker is {ratio:.3f} of the fault-free one, below {RATIO:g}")
    return said
