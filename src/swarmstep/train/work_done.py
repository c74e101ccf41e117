"""What each worker of a run has done: its share of the work, and where its time went."""

from __future__ import annotations

import dataclasses
import itertools
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


def mean_of(rows: Sequence[WorkDone]) -> WorkDone:
    """Return the means over several runs of what one worker did; steps and dropped results are rounded."""
    numbers = [dataclasses.astuple(row) for row in rows]
    rank, steps, *rest, dropped = (sum(column) / len(rows) for column in zip(*numbers, strict=True))
    return WorkDone(round(rank), round(steps), *rest, dropped=round(dropped))


def unequal(rows: Sequence[WorkDone]) -> bool:
    """Return whether the workers' times or steps differ by more than a fifth, or results came late."""
    seconds, steps = [row.compute_seconds for row in rows], [row.steps for row in rows]
    differ = any(values and max(values) > 1.2 * min(values) for values in (seconds, steps))
    return differ or any(row.staleness or row.dropped for row in rows)


HEAD = ("worker", "steps", "share", "computed", "waited", "sent", "late by", "dropped")
NOTHING = {"0.0 s", "0.0", "0"}


def in_words(rows: Sequence[WorkDone]) -> list[tuple[str, ...]]:
    """Return each row as words, one for each of HEAD."""
    return [
        (
            str(row.rank),
            str(row.steps),
            f"{share:.0%}",
            *(f"{seconds:.1f} s" for seconds in (row.compute_seconds, row.wait_seconds, row.send_seconds)),
            f"{row.staleness:.1f}",
            str(row.dropped),
        )
        for row, share in zip(rows, shares(rows), strict=True)
    ]


def work_table(rows: Sequence[WorkDone]) -> list[tuple[str, ...]]:
    """Return a head and the rows as words, without columns in which nothing has happened."""
    table = [HEAD, *in_words(rows)]
    shown = [column < 3 or not {line[column] for line in table[1:]} <= NOTHING for column in range(len(HEAD))]
    return [tuple(itertools.compress(line, shown)) for line in table]
