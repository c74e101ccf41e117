"""What a run sent and when, folded so that a thousand equal rounds take one line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from swarmstep.comm.metered import Call


class TracedRound(NamedTuple):
    """One round: at which step it started, at which it landed (the same without a delay), and its calls."""

    started: int
    landed: int
    calls: tuple[Call, ...]


class Trace:
    """The rounds of a run, in the order in which they landed.

    Args:
        folded: what `folded` of another trace is; plain lists, as JSON has them.
    """

    def __init__(self, folded: Sequence[Any] = ()) -> None:
        # Runs of rounds with equal calls, at equal distances: [calls, started, landed, distance, count].
        self.folded: list[list[Any]] = [[[list(c) for c in calls], *rest] for calls, *rest in folded]

    def add(self, started: int, landed: int, calls: Sequence[tuple[str, int, int]]) -> None:
        """Append a round."""
        plain = [list(call) for call in calls]
        if self.folded:
            last = self.folded[-1]
            known, first, first_landed, distance, count = last
            step = started - (first + distance * (count - 1))
            if known == plain and landed - started == first_landed - first and (count == 1 or step == distance):
                last[3:] = step, count + 1
                return
        self.folded.append([plain, started, landed, 0, 1])

    def __iter__(self) -> Iterator[TracedRound]:
        for plain, started, landed, distance, count in self.folded:
            calls = tuple(Call(*call) for call in plain)
            for i in range(count):
                yield TracedRound(started + distance * i, landed + distance * i, calls)
