"""How a supervisor works."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class SupervisorOptions:
    """How a supervisor works.

    Args:
        restart: whether a worker that dies is replaced.
        shown: whether workers write to this process's output; else their output is discarded.
        program: what a worker runs, as in a `ProcessSpec`.
        errors: an existing folder for the workers' error messages and standard error (None: a temporary one).
        listen: called with each start and end of a worker: "kind" ("started", "ended"), "time", "worker", "slot";
            at a start "pid"; at an end "code" (an exit code, or -signal), "error" (its message) and "lost"
            (whether it died before the run was over).
        trouble: where the run is another machine's, called at each `attend`: returns why the run is over for this
            machine, None as long as it is not. An interrupt then means to leave the run, not to stop it.
        follows: of a supervisor that takes the place of one that has died: slot -> incarnation of its last worker
            there (empty: its slots are new).
    """

    restart: bool = True
    shown: bool = False
    program: str = "swarmstep"
    errors: Path | None = None
    listen: Callable[[dict[str, Any]], None] = lambda event: None
    trouble: Callable[[], str | None] | None = None
    follows: Mapping[int, int] = dataclasses.field(default_factory=dict[int, int])
