"""The files that a run with faults leaves behind: the events of its workers, and of the injector."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

WORKER_EVENTS = "events"  # folder of the workers' files, one for each slot
FAULT_LOG = "storm.jsonl"


class Joined(NamedTuple):
    """A worker has joined the group of an epoch."""

    time: float  # as of time.time()
    worker: str  # SLOT.INCARNATION
    epoch: int
    round: int  # the last one committed before
    step: int
    members: tuple[str, ...]
    newcomer: bool
    seconds: float  # that the regrouping took this worker
    digest: float | None  # of the common state, after joining


class Landed(NamedTuple):
    """A worker has applied a committed round."""

    time: float
    worker: str
    epoch: int
    round: int  # from 1
    step: int
    members: tuple[str, ...]
    averaged: int  # number of workers whose weights were averaged
    loss: float | None  # mean training loss over the members
    digest: float | None  # of the common weights after the round
    done: tuple[int, ...] = ()  # steps of each member in it, where they take different numbers


class Saved(NamedTuple):
    """A worker has written a checkpoint, or failed to."""

    time: float
    worker: str
    error: str  # "" if the checkpoint was written


WorkerEvent = Joined | Landed | Saved


class InjectedFault(NamedTuple):
    """A fault that was injected."""

    time: float
    kind: str
    slot: int | None
    worker: str | None  # the victim
    until: float  # when it ended
    victims: tuple[str, ...] = ()  # all of them, where they are several

    @property
    def hit(self) -> tuple[str, ...]:
        """The names of all victims."""
        return self.victims or ((self.worker,) if self.worker else ())


def slot_of(worker: str) -> int:
    """Return the slot in a worker's name."""
    return int(worker.partition(".")[0])


def event(line: str) -> WorkerEvent | None:
    """Return the event in a line of a worker's file; None for other events and for incomplete lines."""
    try:
        row = json.loads(line)
        kind = {"joined": Joined, "round": Landed}.get(row["kind"])
        if kind:
            row["members"], row["done"] = tuple(row["members"]), tuple(row.get("done", ()))
            return kind(*(row[name] for name in kind._fields))
        if row["kind"] in ("checkpoint", "checkpoint failed"):
            return Saved(row["time"], row["worker"], str(row.get("why", "")))
    except (ValueError, KeyError, TypeError):
        pass
    return None


class Tail:
    """Reads the workers' files while they grow.

    Args:
        folder: of the run; the files need not exist yet.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / WORKER_EVENTS
        self._read: dict[Path, int] = {}  # bytes

    def new(self) -> list[WorkerEvent]:
        """Return the events written since the last call, ordered by time."""
        new: list[WorkerEvent] = []
        for path in sorted(self._folder.glob("*.jsonl")):
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                lines = file.read().rpartition(b"\n")[0]
            self._read[path] = self._read.get(path, 0) + len(lines) + bool(lines)
            events = (event(line) for line in lines.decode(errors="replace").splitlines())
            new += [event for event in events if event]
        return sorted(new, key=lambda event: event.time)


class FaultLog:
    """Records what the injector does and what happens to the processes, in a file and in `rows`.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: list[dict[str, Any]] = []

    def write(self, kind: str, **fields: Any) -> None:
        """Add an event with the current time."""
        self.add({"kind": kind, "time": time.time(), **fields})

    def add(self, row: dict[str, Any]) -> None:
        """Add an event."""
        self.rows.append(row)
        with (self.folder / FAULT_LOG).open("a") as file:
            file.write(json.dumps(row) + "\n")


def injected_faults(rows: Sequence[dict[str, Any]]) -> list[InjectedFault]:
    """Return the faults in the rows of a `FaultLog`; one that has no end lasts forever."""
    ends = {row["fault"]: row["time"] for row in rows if row["kind"] == "over"}
    victims = {row["fault"]: tuple(row["victims"]) for row in rows if row["kind"] == "hit"}
    return [
        InjectedFault(
            row["time"],
            row["what"],
            row["slot"],
            row["worker"],
            ends.get(row["fault"], float("inf")),
            victims.get(row["fault"], ()),
        )
        for row in rows
        if row["kind"] == "strike"
    ]
