"""What each worker of a run has done: its share of the work, and where its time went."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass
class WorkDone:
    """One worker's.

    Attributes:
        rank: whose.
        steps: local steps that it has taken.
        compute_seconds: that these took.
        wait_seconds: in which it waited for others: in a round for the slowest, without rounds for its next job.
        send_seconds: in which vectors were exchanged and it waited for that.
        staleness: without rounds: of its results that counted, the mean number of steps that the server had taken
            since it handed out the job.
        dropped: without rounds: its results that did not count.
    """

    rank: int
    steps: int = 0
    compute_seconds: float = 0.0
    wait_seconds: float = 0.0
    send_seconds: float = 0.0
    staleness: float = 0.0
    dropped: int = 0


def shares(rows: Sequence[WorkDone]) -> list[float]:
    """Return each worker's share of all steps; equal ones before the first."""
    total = sum(row.steps for row in rows)
    return [row.steps / total if total else 1 / len(rows) for row in rows]


def unequal(rows: Sequence[WorkDone]) -> bool:
    """Return whether the workers' times differ by more than a fifth, or results came late."""
    seconds = [row.compute_seconds for row in rows]
    return bool(rows) and (max(seconds) > 1.2 * min(seconds) or any(row.staleness or row.dropped for row in rows))


HEAD = ("worker", "steps", "share", "computed", "waited", "sent", "late by", "dropped")


def work_table(rows: Sequence[WorkDone]) -> list[tuple[str, ...]]:
    """Return the rows as words, with a head; columns in which nothing has happened are left out."""
    seconds = [(row.compute_seconds, row.wait_seconds, row.send_seconds) for row in rows]
    lines = [
        (
            str(row.rank),
            str(row.steps),
            f"{share:.0%}",
            *(f"{value:.1f} s" for value in spent),
            f"{row.staleness:.1f}",
            str(row.dropped),
        )
        for row, share, spent in zip(rows, shares(rows), seconds, strict=True)
    ]
    idle = {4: not any(s[1] for s in seconds), 5: not any(s[2] for s in seconds)}
    idle |= {6: not any(row.staleness for row in rows), 7: not any(row.dropped for row in rows)}
    return [tuple(cell for column, cell in enumerate(line) if not idle.get(column)) for line in (HEAD, *lines)]
