"""How the processes that torchrun (or `swarmstep train`) has started find each other."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist  # noqa: TID251 -- the part of comm/dist.py that reads the environment
from torch.distributed.rendezvous import rendezvous  # noqa: TID251

from swarmstep.comm.groups import TCPStore, brief  # pyright: ignore[reportPrivateImportUsage]
from swarmstep.comm.heartbeat import Heartbeat
from swarmstep.comm.secret import check_door, secret_of
from swarmstep.errors import CommError, UsageError

NAMES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class Found(NamedTuple):
    """What a process has once it has found the others.

    Args:
        secret: that the members have to prove to each other, if the environment gives one.
        control: a gloo group of all, where the default group is not gloo.
        heartbeat: of this process, not started.
    """

    secret: bytes | None
    control: Any
    heartbeat: Heartbeat


def find(backend: str | None, patience: float) -> Found:
    """Form the default group that the environment describes.

    Args:
        backend: "gloo" or "nccl" (default: nccl where CUDA is available, else gloo).
        patience: seconds for the group to come together, and for each operation.

    Raises:
        UsageError: a variable of NAMES is not set, or a group exists already, or the workers would meet on another
            machine's address without a secret.
        CommError: the group did not come together.
    """
    missing = [name for name in NAMES if name not in os.environ]
    if missing:
        raise UsageError(
            f"DistComm.from_env: {', '.join(missing)} not set in the environment; start the program with "
            "torchrun, or use simulate(train, workers)"
        )
    if dist.is_initialized():
        raise UsageError("DistComm.from_env: a process group exists already; use DistComm(group)")
    host, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    secret = secret_of(os.environ)
    check_door(host, secret)
    backend = backend or ("nccl" if torch.cuda.is_available() else "gloo")
    limit = timedelta(seconds=patience + 60)  # ours ends first, and knows more
    try:
        store, rank, size = next(rendezvous("env://", timeout=timedelta(seconds=patience)))
        if backend == "nccl":
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=limit)
        own = TCPStore(host, int(port), is_master=False)
        heartbeat = Heartbeat(own, str(rank), [*map(str, range(size))])
        control: Any = dist.new_group(backend="gloo", timeout=limit) if backend != "gloo" else None
    except (RuntimeError, ValueError) as error:
        where = f"{host}:{port}"
        raise CommError(
            f"rank {os.environ['RANK']}: the group at {where} did not come together: {brief(error)}"
        ) from error
    return Found(secret, control, heartbeat)
