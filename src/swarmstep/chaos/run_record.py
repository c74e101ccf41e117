"""A run with or without faults, as its files record it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from swarmstep.chaos.event_log import InjectedFault, Joined, Landed, WorkerEvent


class RunRecord(NamedTuple):
    """The events of a run, and its faults."""

    events: Sequence[WorkerEvent]
    rows: Sequence[Mapping[str, Any]]  # of the FaultLog
    faults: Sequence[InjectedFault] = ()
    scheduled: int = 0  # number of faults, injected or not

    @property
    def joined(self) -> list[Joined]:
        """All entries of workers into epochs."""
        return [event for event in self.events if isinstance(event, Joined)]

    @property
    def rounds(self) -> list[Landed]:
        """Each committed round once, as the first worker recorded it, in order."""
        first: dict[int, Landed] = {}
        for event in self.events:
            if isinstance(event, Landed):
                first.setdefault(event.round, event)
        return [first[number] for number in sorted(first)]
