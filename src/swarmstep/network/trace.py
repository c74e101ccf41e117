"""What a run sent and when, run-length encoded: a thousand equal rounds take one line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from swarmstep.comm.metered import Call


class TracedRound(NamedTuple):
    """One round: the steps at which it started and landed (the same without a delay), and its calls."""

    started: int
    landed: int
    calls: tuple[Call, ...]


class Trace:
    """The rounds of a run, in the order in which they landed.

    Args:
        folded: the attribute `folded` of another trace, as plain lists (from JSON).
    """

    def __init__(self, folded: Sequence[Any] = ()) -> None:
        # Sequences of rounds with equal calls at equal intervals: [calls, started, landed, interval, count].
        self.folded: list[list[Any]] = [[[list(c) for c in calls], *rest] for calls, *rest in folded]

    def add(self, started: int, landed: int, calls: Sequence[tuple[str, int, int]]) -> None:
        """Append a round."""
        plain = [list(call) for call in calls]
        if self.folded:
            last = self.folded[-1]
            previous, first, first_landed, interval, count = last
            step = started - (first + interval * (count - 1))
            if previous == plain and landed - started == first_landed - first and (count == 1 or step == interval):
                last[3:] = step, count + 1
                return
        self.folded.append([plain, started, landed, 0, 1])

    def __iter__(self) -> Iterator[TracedRound]:
        for plain, started, landed, interval, count in self.folded:
            calls = tuple(Call(*call) for call in plain)
            for i in range(count):
                yield TracedRound(started + interval * i, landed + interval * i, calls)
