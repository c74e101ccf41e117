"""What workers in real processes tell of their work, through the store: it does not enter any state."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from swarmstep.asynchronous import Links

SAVED = "saved"  # it is written down how the run has ended; see `Links.mark`
SLICE = 0.25  # seconds between two questions whether it is


def tell(box: Links, steps: int, computed: float, loss: float) -> None:
    """Tell what this process has done as its worker: local steps, the seconds of them, and the last loss."""
    box.mark(f"did/{box.node}", json.dumps([box.entry, steps, computed, loss]))


class Told:
    """What all workers have told, those of their processes that have ended included.

    Args:
        box: of the node that asks.
        workers: W.
        losses: [W], the last loss of each; changed here.
    """

    def __init__(self, box: Links, workers: int, losses: list[float]) -> None:
        self._box, self._losses = box, losses
        self._sums = [(0, 0.0)] * workers
        self._last = [self._did(rank) for rank in range(workers)]  # a process before this one may have counted it

    def go_on(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Count on from what was recorded of each worker."""
        for row in rows:
            self._sums[row["rank"]] = row["steps"], row["compute_seconds"]

    def all(self) -> list[tuple[int, float]]:
        """Return the steps of each worker, and the seconds that it has computed."""
        for rank, before in enumerate(self._last):
            entry, steps, computed, loss = self._last[rank] = self._did(rank)
            if entry == before[0]:
                steps, computed = steps - before[1], computed - before[2]
            sums = self._sums[rank]
            self._sums[rank], self._losses[rank] = (sums[0] + steps, sums[1] + computed), loss
        return [*self._sums]

    def _did(self, rank: int) -> tuple[int, int, float, float]:
        """Return which of a worker's processes has told last, its steps, the seconds of them, and its loss."""
        told = self._box.text_of(f"did/{rank}")
        return tuple(json.loads(told)) if told else (0, 0, 0.0, math.nan)
