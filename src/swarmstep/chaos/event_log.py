"""What a storm leaves in writing: the workers' events, and its own."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

EVENTS = "events"  # folder of the workers' files, one for each slot
STORM = "storm.jsonl"


class Joined(NamedTuple):
    """A worker has entered the group of an epoch."""

    time: float  # as of time.time()
    worker: str  # SLOT.INCARNATION
    epoch: int
    round: int  # the last one committed before
    step: int
    members: tuple[str, ...]
    newcomer: bool
    seconds: float  # that the regrouping took this worker
    print: float | None  # digest of the common state, after entering


class Landed(NamedTuple):
    """A worker has landed a committed round."""

    time: float
    worker: str
    epoch: int
    round: int  # from 1
    step: int
    members: tuple[str, ...]
    averaged: int  # workers whose weights went into it
    loss: float | None  # mean training loss over the members
    print: float | None  # digest of the common weights after it


class Saved(NamedTuple):
    """A worker has written a checkpoint, or could not."""

    time: float
    worker: str
    why: str  # it could not; "" if it could


Event = Joined | Landed | Saved


class Struck(NamedTuple):
    """A fault that was carried out."""

    time: float
    kind: str
    slot: int | None
    worker: str | None  # who was struck
    until: float  # when it was over


def slot_of(worker: str) -> int:
    """Return the slot of a worker's name."""
    return int(worker.partition(".")[0])


def event(line: str) -> Event | None:
    """Return what a line of a worker's file says; None for other events, and for a line that was cut short."""
    try:
        row = json.loads(line)
        kind = {"joined": Joined, "round": Landed}.get(row["kind"])
        if kind:
            row["members"] = tuple(row["members"])
            return kind(*(row[name] for name in kind._fields))
        if row["kind"] in ("checkpoint", "checkpoint failed"):
            return Saved(row["time"], row["worker"], str(row.get("why", "")))
    except (ValueError, KeyError, TypeError):
        pass
    return None


class Tail:
    """Reads the workers' files as they grow.

    Args:
        folder: of the run; the files may not be there yet.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / EVENTS
        self._read: dict[Path, int] = {}  # bytes

    def new(self) -> list[Event]:
        """Return what was written since the last call, in time order."""
        found: list[Event] = []
        for path in sorted(self._folder.glob("*.jsonl")):
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                whole = file.read().rpartition(b"\n")[0]
            self._read[path] = self._read.get(path, 0) + len(whole) + bool(whole)
            events = (event(line) for line in whole.decode(errors="replace").splitlines())
            found += [event for event in events if event]
        return sorted(found, key=lambda event: event.time)


class Log:
    """Writes down what the storm does, and what becomes of the processes; keeps it, too.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: list[dict[str, Any]] = []

    def write(self, kind: str, **more: Any) -> None:
        """Add an event of now."""
        self.add({"kind": kind, "time": time.time(), **more})

    def add(self, row: dict[str, Any]) -> None:
        """Add an event."""
        self.rows.append(row)
        with (self.folder / STORM).open("a") as file:
            file.write(json.dumps(row) + "\n")


def struck(rows: Sequence[dict[str, Any]]) -> list[Struck]:
    """Return the faults that a storm's events tell of; one that was not over lasts for ever."""
    ends = {row["fault"]: row["time"] for row in rows if row["kind"] == "over"}
    return [
        Struck(row["time"], row["what"], row["slot"], row["worker"], ends.get(row["fault"], float("inf")))
        for row in rows
        if row["kind"] == "strike"
    ]
