"""How a run is carried out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Job:
    """How a run is carried out: nothing here changes its numbers.

    Args:
        out: the run's folder (None: a new one below runs/).
        resume: go on from the checkpoint in `out`.
        stopping: returns whether somebody asked this worker to stop.
        stop_at: a step to stop at as if asked (None: none).
        quiet: show nothing.
        keep: write files.
        listen: called on rank 0 with each row that is recorded.
        pace: least seconds of a local step; of a worker that `Config.speeds` makes slower, as many more.
    """

    out: Path | None = None
    resume: bool = False
    stopping: Callable[[], bool] = lambda: False
    stop_at: int | None = None
    quiet: bool = False
    keep: bool = True
    listen: Callable[[dict[str, Any]], None] | None = None
    pace: float = 0.0
