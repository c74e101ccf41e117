"""What the process that started this one says in environment variables; the only place of `train` that reads them.

How a worker finds its group there is read by `DistComm.from_env` and `Membership.from_env`.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

from swarmstep.errors import UsageError

VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # of a worker of a fixed group
SETTINGS = "SWARMSTEP_SETTINGS"  # for workers of a machine that has joined a run: the run's settings, JSON


class StartedAs(NamedTuple):
    """What this process was started as.

    Args:
        group_size: of the fixed group that this worker belongs to, as torchrun sets WORLD_SIZE (None: of none).
        worker: the name of this worker of a supervisor (None: it is none).
        folder: of the supervisor's run, which it holds (None: none, or no files are written).
        joined: the settings of the run that this worker's machine has joined (None: it has joined none).
    """

    group_size: int | None
    worker: str | None
    folder: Path | None
    joined: str | None


def started_as() -> StartedAs:
    """Return what this process was started as.

    Raises:
        UsageError: RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT do not go together.
    """
    folder = os.environ.get("SWARMSTEP_FOLDER")
    return StartedAs(
        _group_size(),
        os.environ.get("SWARMSTEP_WORKER"),
        Path(folder) if folder else None,
        os.environ.get(SETTINGS),
    )


def _group_size() -> int | None:
    if not any(name in os.environ for name in ("RANK", "WORLD_SIZE")):
        return None
    if missing := [name for name in VARIABLES if name not in os.environ]:
        found = [name for name in VARIABLES if name in os.environ]
        raise UsageError(
            f"environment: {', '.join(found)} without {', '.join(missing)}: expected all four, as torchrun sets "
            f"them for a worker, or none; unset {' '.join(found)} to start a run of its own"
        )
    rank, size = os.environ["RANK"], os.environ["WORLD_SIZE"]
    if not (rank.isdecimal() and size.isdecimal() and int(rank) < int(size)):
        raise UsageError(
            f"environment: expected RANK from 0 to WORLD_SIZE - 1, found RANK={rank!r} and WORLD_SIZE={size!r}; "
            "set them as torchrun does, or unset them"
        )
    return int(size)


def threads() -> int:
    """Return how many threads a worker computes with: OMP_NUM_THREADS (its first number), or 1."""
    match = re.match(r"\s*([1-9]\d{0,3})\b", os.environ.get("OMP_NUM_THREADS", ""))
    return int(match[1]) if match else 1
