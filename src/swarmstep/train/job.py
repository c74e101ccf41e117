"""How a run is carried out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swarmstep.errors import UsageError


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
        track: names of the sinks (`swarmstep.tracking.SINKS`) that get the recorded numbers, too.
    """

    out: Path | None = None
    resume: bool = False
    stopping: Callable[[], bool] = lambda: False
    stop_at: int | None = None
    quiet: bool = False
    keep: bool = True
    listen: Callable[[dict[str, Any]], None] | None = None
    pace: float = 0.0
    track: Sequence[str] = ()

    def check_stop_at(self, taken: int, steps: int) -> None:
        """Raise UsageError unless the step to stop at is still to come, after `taken` and up to `steps`."""
        if self.stop_at is not None and not taken < self.stop_at <= steps:
            raise UsageError(f"--stop-at: expected a step from {taken + 1} to {steps}, found {self.stop_at}")
