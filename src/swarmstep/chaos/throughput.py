"""How much a run got done: local steps in committed rounds, per second and live worker."""

from __future__ import annotations

import itertools
import math

from swarmstep.chaos.event_log import Saved, slot_of
from swarmstep.chaos.run_record import RunRecord
from swarmstep.chaos.schedule import REMOVING


def live_seconds(run: RunRecord, start: float, end: float) -> float:
    """Return the seconds for which workers were live between two times, summed over all slots.

    A worker is live from its first event in a group (it joined or applied a round) until its process ends or a
    kill, stop or cut hits it; then again from its next event after the fault. Workers that start or wait to join
    are not live; slow ones are.
    """
    removing = [fault for fault in run.faults if fault.kind in REMOVING]
    ends = [(row["time"], row["slot"]) for row in run.rows if row["kind"] == "ended"]
    ends += [(fault.time, slot_of(name)) for fault in removing for name in fault.hit]
    signs = [
        (event.time, slot_of(event.worker))
        for event in run.events
        if not isinstance(event, Saved)
        and not any(event.worker in f.hit and f.time <= event.time <= f.until for f in removing)
    ]
    total = 0.0
    for slot in {slot for _, slot in signs}:
        changes = sorted([(t, True) for t, s in signs if s == slot] + [(t, False) for t, s in ends if s == slot])
        for (since, live), (until, _) in itertools.pairwise([*changes, (math.inf, False)]):
            total += max(0.0, min(until, end) - max(since, start)) if live else 0.0
    return total


def worker_steps(run: RunRecord) -> int:
    """Return the local steps of all workers in the committed rounds after the first.

    A member's steps in a round are those since the round before, or since it joined; those that it has reported
    where the members take different numbers of them.
    """
    joined_at = {(entry.epoch, entry.worker): entry.step for entry in run.joined if entry.newcomer}
    return sum(
        landed.done[place]
        if landed.done
        else landed.step - max(before.step, joined_at.get((landed.epoch, name), 0))
        for before, landed in itertools.pairwise(run.rounds)
        for place, name in enumerate(landed.members)
    )


def throughput(run: RunRecord) -> float:
    """Return the committed local steps per second and live worker, from the first committed round to the last."""
    rounds = run.rounds
    seconds = live_seconds(run, rounds[0].time, rounds[-1].time) if rounds else 0.0
    return worker_steps(run) / seconds if seconds else math.nan


def lost_steps(run: RunRecord) -> int:
    """Return an upper bound of the local steps that were lost: those since the last round of workers that left."""
    return sum(
        max(landed.done, default=landed.step - before.step) * len(set(before.members) - set(landed.members))
        for before, landed in itertools.pairwise(run.rounds)
    )
