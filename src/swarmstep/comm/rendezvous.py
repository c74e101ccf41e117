"""How the processes that torchrun (or `swarmstep train`) has started find each other."""

from __future__ import annotations

import os
import secrets
import time
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from swarmstep.comm.heartbeat import Heartbeat
from swarmstep.comm.process_groups import brief
from swarmstep.comm.secure.auth import check_door, secret_of
from swarmstep.comm.torch_private import PrefixStore, TCPStore
from swarmstep.errors import CommError, UsageError

NAMES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class Rendezvous(NamedTuple):
    """What a process has once it has found the others.

    Args:
        secret: that the members have to prove to each other, if the environment gives one.
        control: a gloo group of all, where the default group is not gloo.
        heartbeat: of this process, not started.
    """

    secret: bytes | None
    control: Any
    heartbeat: Heartbeat


def find(backend: str | None, patience: float) -> Rendezvous:
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
        prefix = _fresh_prefix(store, rank, size, patience)
        dist.init_process_group(
            backend, store=PrefixStore(prefix, store), rank=rank, world_size=size, timeout=limit
        )
        own = PrefixStore(prefix, TCPStore(host, int(port), is_master=False))
        heartbeat = Heartbeat(own, str(rank), [*map(str, range(size))])
        control: Any = dist.new_group(backend="gloo", timeout=limit) if backend != "gloo" else None
    except (RuntimeError, ValueError) as error:
        where = f"{host}:{port}"
        raise CommError(
            f"rank {os.environ['RANK']}: the group at {where} did not come together: {brief(error)}"
        ) from error
    return Rendezvous(secret, control, heartbeat)


def _fresh_prefix(store: Any, rank: int, size: int, patience: float) -> str:
    """Return a prefix of keys that all ranks agree on and that nobody has used.

    torchrun's store outlives the workers: what those before have left there must not be found. Rank 0 chooses; the
    others answer with a number of their own, and go on once rank 0 has said that it has heard that number.

    Raises:
        RuntimeError: somebody did not come within `patience` seconds.
    """
    deadline, mine = time.monotonic() + patience, secrets.token_hex(8)

    def found(key: str) -> str:
        return store.get(key).decode() if store.check([key]) else ""

    if rank == 0:
        store.set("swarmstep/start", mine)
        heard = dict.fromkeys(range(1, size), "")
        while not all(heard.values()):
            _pause(deadline, f"rank {next(r for r, said in heard.items() if not said)}")
            heard = {r: said or found(f"swarmstep/{mine}/{r}") for r, said in heard.items()}
        store.set(f"swarmstep/{mine}/go", " ".join(heard.values()))
        return f"swarmstep/{mine}"
    while True:
        chosen = found("swarmstep/start")
        if chosen:
            store.set(f"swarmstep/{chosen}/{rank}", mine)
            if mine in found(f"swarmstep/{chosen}/go").split():
                return f"swarmstep/{chosen}"
        _pause(deadline, "rank 0")


def _pause(deadline: float, who: str) -> None:
    if time.monotonic() > deadline:
        raise RuntimeError(f"{who} did not come")
    time.sleep(0.005)
