"""What became of each fault: whether the run survived it, and how fast it recovered."""

from __future__ import annotations

from typing import NamedTuple

from swarmstep.chaos.event_log import InjectedFault, Landed, Saved, slot_of
from swarmstep.chaos.run_record import RunRecord
from swarmstep.chaos.schedule import REMOVING, TABLE

PHASES = ("noticed", "regrouped", "recovered")  # fields of a FaultOutcome


class FaultOutcome(NamedTuple):
    """What became of a fault; times in seconds, None if it did not come to that."""

    fault: InjectedFault
    survived: bool
    recovered: float | None
    noticed: float | None  # until the survivors started to regroup
    regrouped: float | None  # that the slowest survivor took for it


def fault_outcomes(run: RunRecord) -> list[FaultOutcome]:
    """Return the outcome of each fault.

    A run has recovered with the first round committed after the fault that does not wait for the victim: one of
    which the victim, by its name, is not a member, or the first after the fault has ended. For those
    that remove nobody from the group, it is the second round after the fault, since the first may have started
    before.

    A run has survived if it has recovered, if each victim of one that removes it was a member of a round again
    after the fault (under whatever name), and if after a full or read-only disk on which checkpoints failed one
    was written. A corrupted checkpoint must be noticed by who reads it, and another be written.
    """
    return [_outcome(fault, run) for fault in run.faults]


def _outcome(fault: InjectedFault, run: RunRecord) -> FaultOutcome:
    after = [landed for landed in run.rounds if landed.time > fault.time]
    removing = fault.kind in REMOVING
    if removing:
        hit = {*fault.hit}
        independent = (r for r in after if not hit & {*r.members} or r.time > fault.until)
    else:
        independent = iter(after[1:])
    recovery = next(independent, None)
    noticed, regrouped = _regrouping(fault, recovery, run) if recovery and removing else (None, None)
    later = {slot_of(name) for landed in after if landed.time > fault.until for name in landed.members}
    returned = not removing or {slot_of(name) for name in fault.hit} <= later
    survived = recovery is not None and returned and _saved_again(fault, run) and not _failed(fault, run)
    return FaultOutcome(fault, survived, recovery.time - fault.time if recovery else None, noticed, regrouped)


def _regrouping(fault: InjectedFault, recovery: Landed, run: RunRecord) -> tuple[float | None, float | None]:
    """Return when the survivors started to regroup, and how long the slowest took; None if they did not."""
    entries = [
        entry
        for entry in run.joined
        if entry.epoch == recovery.epoch and not entry.newcomer and entry.time > fault.time
    ]
    if not entries or {*fault.hit} & {*recovery.members}:
        return None, None
    started = min(entry.time - entry.seconds for entry in entries)
    return started - fault.time, max(entry.seconds for entry in entries)


def _saved_again(fault: InjectedFault, run: RunRecord) -> bool:
    """Return whether, if checkpoints failed during a fault of their disk, one was written after it."""
    if TABLE[fault.kind].strikes != "disk":
        return True
    saved = [event for event in run.events if isinstance(event, Saved) and event.time > fault.time]
    failed = fault.kind == "corrupt" or any(event.error and event.time <= fault.until for event in saved)
    return not failed or any(not event.error and event.time > fault.until for event in saved)


def _failed(fault: InjectedFault, run: RunRecord) -> bool:
    """Return whether a fault was not injected, or a changed checkpoint was read as if it were whole."""
    said = [row for row in run.rows if row["time"] == fault.time or fault.time <= row["time"] <= fault.until]
    kinds = {"failed", "corrupted"} if fault.kind == "corrupt" else {"failed"}
    return any(
        row["kind"] in kinds and row.get("what", fault.kind) == fault.kind and not row.get("noticed")
        for row in said
    )
