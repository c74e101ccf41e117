"""Libraries that find the other workers by themselves, and would synchronize with them at every step."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
from collections.abc import Generator

import torch

from swarmstep.comm.base import Comm
from swarmstep.errors import UsageError

# What torchrun, MPI and SLURM tell a process of the others, and Accelerate and Lightning read.
VARIABLES = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
    "TORCHELASTIC_RUN_ID",
    "PMI_SIZE",
    "OMPI_COMM_WORLD_SIZE",
    "MV2_COMM_WORLD_SIZE",
    "SLURM_NTASKS",
)


@contextlib.contextmanager
def alone() -> Generator[None]:
    """Hide from the environment that there are other workers, for the time of the context.

    A library whose objects are made in it trains as in a program of one process: no DistributedDataParallel, no
    shards of the data, and every worker writes its own files.
    """
    hidden = {name: os.environ.pop(name) for name in VARIABLES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


def check_alone(what: str, workers: int, devices: int = 1) -> None:
    """Raise UsageError where a library's object works with several processes or devices."""
    if workers > 1:
        raise UsageError(
            f"{what} works with {workers} processes, and would synchronize them at every step; make it inside of "
            "`with alone():` (swarmstep.integrations.alone)"
        )
    if devices > 1:
        raise UsageError(
            f"{what} works with {devices} devices in one process; expected one for each worker: start each with "
            "CUDA_VISIBLE_DEVICES of its own"
        )


def check_folders(folder: str | None, comm: Comm) -> None:
    """Raise UsageError, on all ranks, where two workers would write to the same folder. Collective.

    Args:
        folder: of this worker's checkpoints; None where it writes none.
        comm: the group.
    """
    place = f"{socket.gethostname()}:{os.path.abspath(folder)}" if folder else f"none of rank {comm.rank}"
    digest = hashlib.sha256(place.encode()).digest()
    rows = [tuple(row) for row in comm.gather(torch.frombuffer(bytearray(digest), dtype=torch.uint8)).tolist()]
    for rank, row in enumerate(rows):
        if row in rows[:rank]:
            raise UsageError(
                f"ranks {rows.index(row)} and {rank} write their checkpoints to the same folder (rank "
                f"{comm.rank}: {folder}); give each worker its own, with its rank in the name"
            )
