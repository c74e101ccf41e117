"""What a worker of an elastic run has to tell: one JSON object a line, in a file for each slot."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

from swarmstep.console import plain


class WorkerEvents:
    """Appends to events/SLOT.jsonl below the folder of the run; without a folder, tells nobody.

    Args:
        folder: of the run.
        worker: its name, SLOT.INCARNATION.
    """

    def __init__(self, folder: Path | None, worker: str) -> None:
        self._worker = worker
        self._file = folder / "events" / f"{worker.partition('.')[0]}.jsonl" if folder else None
        if self._file:
            self._file.parent.mkdir(parents=True, exist_ok=True)

    def write(self, kind: str, **row: Any) -> None:
        """Write an event down, with the time and who tells it; a full disk does not stop the training."""
        if self._file:
            line = json.dumps(plain({"kind": kind, "time": time.time(), "worker": self._worker, **row})) + "\n"
            with contextlib.suppress(OSError), self._file.open("a") as file:
                file.write(line)


def shared_digest(states: Sequence[NamedTuple]) -> float | None:
    """Return the sum of all vectors that the members share, to check that they do; None without any.

    It covers floating-point vectors only: counts and sizes are the same in a state that was wiped.
    """
    sums = [
        float(tensor.double().sum())
        for state in states
        for name, tensor in state._asdict().items()
        if tensor.dim() == 1
        and tensor.is_floating_point()
        and getattr(get_type_hints(type(state), include_extras=True)[name], "__metadata__", ("",))[0] == "shared"
    ]
    return sum(sums) if sums else None
