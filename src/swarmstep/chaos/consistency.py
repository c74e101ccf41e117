"""Whether a run lost something: committed rounds, the common state, or workers that no fault had killed."""

from __future__ import annotations

import signal
from collections import defaultdict

from swarmstep.chaos.event_log import Landed
from swarmstep.chaos.run_record import RunRecord
from swarmstep.chaos.schedule import TABLE


def lost_rounds(run: RunRecord) -> int:
    """Return the number of committed rounds that the run did not continue from.

    Every round from 1 to the last must be recorded, with a step above that of the round before and in no earlier
    epoch, and by all workers with the same step, epoch, members and digest. (A worker that records a round late,
    in another group, has no digest of it.) Each number for which this does not hold counts.
    """
    records: dict[int, set[tuple[int, int, tuple[str, ...]]]] = defaultdict(set)
    digests: dict[int, set[float]] = defaultdict(set)
    for event in run.events:
        if isinstance(event, Landed):
            records[event.round].add((event.step, event.epoch, event.members))
            digests[event.round] |= set() if event.digest is None else {event.digest}
    first = {0: (0, 0)} | {landed.round: (landed.step, landed.epoch) for landed in run.rounds}
    timed = any(landed.done for landed in run.rounds)  # a round may then be shorter than a step of all
    lost = 0
    for number in range(1, max(records, default=0) + 1):
        step, epoch = first.get(number, (0, 0))
        step_before, epoch_before = first.get(number - 1, (0, 0))
        continues = step > step_before - timed and epoch >= epoch_before
        lost += not continues or len(records[number]) > 1 or len(digests[number]) > 1
    return lost


def wiped_states(run: RunRecord) -> int:
    """Return how often a worker joined a group with a state other than that of the run.

    Its digest differs from that of a member which was there before; or no member was there before although the run
    had started; or it is behind a round that was committed in an earlier epoch.
    """
    expected: dict[int, float | None] = {}
    for entry in run.joined:
        if not entry.newcomer:
            expected.setdefault(entry.epoch, entry.digest)
    first = min((entry.epoch for entry in run.joined), default=0)
    wiped, rounds = 0, run.rounds
    for entry in run.joined:
        behind = any(landed.epoch < entry.epoch and landed.round > entry.round for landed in rounds)
        orphaned = entry.epoch > first and entry.epoch not in expected
        wiped += behind or orphaned or entry.digest != expected.get(entry.epoch, entry.digest)
    return wiped


def unplanned_deaths(run: RunRecord) -> list[str]:
    """Return the workers that died although no kill had hit them, each with how it ended."""
    killed = {name for fault in run.faults if TABLE[fault.kind].kills for name in fault.hit}
    killed |= {row["worker"] for row in run.rows if row["kind"] == "killed" and "worker" in row}
    ends = [(row["worker"], row["code"]) for row in run.rows if row["kind"] == "ended" and row["lost"]]
    return [
        f"{worker} ({signal.Signals(-code).name if code < 0 else f'exit code {code}'})"
        for worker, code in ends
        if worker not in killed or code != -signal.SIGKILL
    ]
