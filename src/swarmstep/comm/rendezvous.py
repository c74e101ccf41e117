"""How the processes that torchrun (or `swarmstep train`) has started find each other."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import time
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from swarmstep.comm.heartbeat import Heartbeat
from swarmstep.comm.interfaces import interface_towards
from swarmstep.comm.process_groups import LOOPBACK, brief, connect
from swarmstep.comm.secure.auth import check_address, is_loopback, secret_of
from swarmstep.comm.torch_private import PrefixStore, TCPStore
from swarmstep.errors import CommError, UsageError

VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class Rendezvous(NamedTuple):
    """What a process has once it has found the others.

    Args:
        secret: that the members prove to each other, if the environment gives one.
        control: a gloo group of all ranks, where the default group is not gloo.
        heartbeat: of this process, not started.
        formed: whether the default group is ours, and was not there before.
    """

    secret: bytes | None
    control: Any
    heartbeat: Heartbeat
    formed: bool


def find(backend: str | None, patience: float) -> Rendezvous:
    """Form the default process group that the environment describes, or join in the one that exists.

    Args:
        backend: "gloo" or "nccl" (default: nccl where CUDA is available, else gloo), unless a group exists.
        patience: seconds for the group to form, and for each operation.

    Raises:
        UsageError: a variable of VARIABLES is not set, or names no port, or a group exists that it does not
            describe, or the workers are on several machines and there is no secret.
        CommError: the group could not be formed.
    """
    missing = [name for name in VARIABLES if name not in os.environ]
    if missing:
        raise UsageError(
            f"DistComm.from_env: {', '.join(missing)} not set in the environment; start the program with "
            "torchrun, or use simulate(train, workers)"
        )
    if os.environ["MASTER_PORT"] == "0":
        raise UsageError(
            "MASTER_PORT=0: expected the port at which the workers meet; torchrun --master-port 0 takes a free "
            "one and does not tell them which: give a port, or torchrun --standalone"
        )
    secret = secret_of(os.environ)
    host, port = _meeting_place(secret), os.environ["MASTER_PORT"]
    formed = not dist.is_initialized()
    limit = timedelta(seconds=patience + 60)  # our own limit ends first, with the better message
    try:
        prefix = _form(backend, patience, limit) if formed else _joined(host, int(port), patience)
        own_store = PrefixStore(prefix, TCPStore(host, int(port), is_master=False))
        names = [*map(str, range(dist.get_world_size()))]
        heartbeat = Heartbeat(own_store, str(dist.get_rank()), names, host=host)
        control: Any = dist.new_group(backend="gloo", timeout=limit) if dist.get_backend() != "gloo" else None
    except (RuntimeError, ValueError) as error:
        if not formed:
            raise CommError(
                f"rank {os.environ['RANK']}: a process group exists, but its store is not at {host}:{port} "
                f"(MASTER_ADDR, MASTER_PORT): {brief(error)}; set them, or give the group: DistComm(group)"
            ) from error
        raise CommError(
            f"rank {os.environ['RANK']}: the group at {host}:{port} could not be formed: {brief(error)}"
        ) from error
    return Rendezvous(secret, control, heartbeat, formed)


def _meeting_place(secret: bytes | None) -> str:
    """Return the host where the ranks meet, and let gloo take the network interface towards it."""
    if _all_are_here():  # whatever address this machine's name stands for
        os.environ["MASTER_ADDR"] = "127.0.0.1"
        os.environ.setdefault("GLOO_SOCKET_IFNAME", LOOPBACK)
    host = os.environ["MASTER_ADDR"]
    check_address(host, secret)
    if not is_loopback(host):  # gloo would take the address of this machine's name, which often is loopback
        with contextlib.suppress(UsageError):  # then gloo may know better
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface_towards(host))
    return host


def _form(backend: str | None, patience: float, limit: timedelta) -> str:
    """Form the group; return the prefix of its keys in the store."""
    backend = backend or ("nccl" if torch.cuda.is_available() else "gloo")
    store, rank, size = next(rendezvous("env://", timeout=timedelta(seconds=patience)))
    if backend == "nccl":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    prefix = _unused_prefix(store, rank, size, patience)
    dist.init_process_group(backend, store=PrefixStore(prefix, store), rank=rank, world_size=size, timeout=limit)
    return prefix


def _joined(host: str, port: int, patience: float) -> str:
    """Return an unused prefix in the store of a group that others have formed, as Ray Train does.

    Raises:
        UsageError: the environment does not describe that group.
    """
    rank, size = dist.get_rank(), dist.get_world_size()
    if (os.environ["RANK"], os.environ["WORLD_SIZE"]) != (str(rank), str(size)):
        raise UsageError(
            f"DistComm.from_env: the process group that exists already has rank {rank} of {size} here, the "
            f"environment describes RANK={os.environ['RANK']} and WORLD_SIZE={os.environ['WORLD_SIZE']}; use "
            "DistComm(group)"
        )
    return _unused_prefix(connect(host, port, patience), rank, size, patience)


def _all_are_here() -> bool:
    """Return whether all ranks are on this machine, as torchrun tells, and so is their store."""
    host = os.environ["MASTER_ADDR"]
    if os.environ["WORLD_SIZE"] != os.environ.get("LOCAL_WORLD_SIZE"):
        return False
    if host == socket.gethostname():  # also where no name server knows it
        return True
    with contextlib.suppress(OSError):
        for family, _, _, _, address in socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM):
            with socket.socket(family, socket.SOCK_STREAM) as probe, contextlib.suppress(OSError):
                probe.bind(address)  # works for this machine's addresses only
                return True
    return False


def _unused_prefix(store: Any, rank: int, size: int, patience: float) -> str:
    """Return a prefix of keys that all ranks agree on and that nobody has used before.

    torchrun's store outlives the workers, and these must not find what earlier workers left there. Rank 0 proposes
    a prefix; each other rank answers with a random number, and goes on once rank 0 has confirmed that number.

    Raises:
        RuntimeError: a rank did not come within `patience` seconds.
    """
    deadline, number = time.monotonic() + patience, secrets.token_hex(8)

    def value(key: str) -> str:
        return store.get(key).decode() if store.check([key]) else ""

    if rank == 0:
        store.set("swarmstep/start", number)
        answers = dict.fromkeys(range(1, size), "")
        while not all(answers.values()):
            _pause(deadline, f"rank {next(r for r, answer in answers.items() if not answer)}")
            answers = {r: answer or value(f"swarmstep/{number}/{r}") for r, answer in answers.items()}
        store.set(f"swarmstep/{number}/go", " ".join(answers.values()))
        return f"swarmstep/{number}"
    while True:
        proposed = value("swarmstep/start")
        if proposed:
            store.set(f"swarmstep/{proposed}/{rank}", number)
            if number in value(f"swarmstep/{proposed}/go").split():
                return f"swarmstep/{proposed}"
        _pause(deadline, "rank 0")


def _pause(deadline: float, awaited: str) -> None:
    if time.monotonic() > deadline:
        raise RuntimeError(f"{awaited} did not come")
    time.sleep(0.005)
