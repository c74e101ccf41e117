"""How a run is carried out and what is counted; what rank 0 does for all."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from swarmstep.comm.base import Comm
from swarmstep.errors import CheckpointError, DataError, SwarmstepError, UsageError


@dataclasses.dataclass(frozen=True)
class Job:
    """How a run is carried out: nothing here changes its numbers.

    `out` is the run's folder (None: a new one below runs/), `resume` goes on from the checkpoint in it,
    `stopping` says that somebody asked to stop, `stop_at` is a step to stop at as if asked, `quiet` shows
    nothing, `keep` False writes no files, `listen` is given on rank 0 each event as it happens, `pace` is how many
    seconds a local step takes at least.
    """

    out: Path | None = None
    resume: bool = False
    stopping: Callable[[], bool] = lambda: False
    stop_at: int | None = None
    quiet: bool = False
    keep: bool = True
    listen: Callable[[dict[str, Any]], None] | None = None
    pace: float = 0.0


@dataclasses.dataclass
class Tally:
    """What is counted during a run, and survives a stop.

    `seconds` of training, evaluations and checkpoints not included; of them `compute_seconds` for local steps by
    this worker's own clock, `sync_seconds` for rounds, `probe_seconds` of those for probes.
    """

    step: int = 0
    rounds: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    seconds: float = 0.0
    compute_seconds: float = 0.0
    sync_seconds: float = 0.0
    probe_seconds: float = 0.0
    train_loss: float = math.nan
    distrusted: list[dict[str, Any]] = dataclasses.field(default_factory=list[dict[str, Any]])

    def add_round(self, sent: int, received: int, seconds: float) -> None:
        """Count a round: bytes by this worker, and its seconds."""
        self.rounds += 1
        self.bytes_sent += sent
        self.bytes_received += received
        self.sync_seconds += seconds


def from_rank_0(make: Callable[[], str], comm: Comm) -> str:
    """Return what `make()` returns on rank 0, where alone it is called; its error is raised on all. Collective."""
    said, problem = "", None
    if comm.rank == 0:
        try:
            said = "0" + make()
        except SwarmstepError as error:
            said, problem = f"{error.exit_code}{error}", error
    content = torch.tensor(list(said.encode()), dtype=torch.uint8)
    length = int(comm.broadcast(torch.tensor(len(content)), 0))
    room = content if comm.rank == 0 else torch.zeros(length, dtype=torch.uint8)
    said = bytes(comm.broadcast(room, 0).tolist()).decode()
    if said[0] != "0":
        kinds = {str(kind.exit_code): kind for kind in (UsageError, DataError, CheckpointError)}
        raise problem or kinds.get(said[0], SwarmstepError)(said[1:])
    return said[1:]
