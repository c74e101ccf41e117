"""The process groups of torch.distributed: formed, ended while operations are under way, and formed again."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from swarmstep.comm.torch_private import PrefixStore, TCPStore, all_groups, reset_group_count, set_timeout

FORMING = 5.0  # seconds that those who have agreed on a group have to connect, at least
NEVER = (1 << 20) - 1  # tag of what nobody sends; next to those that `p2p` uses


def serve_store(host: str = "127.0.0.1") -> tuple[TCPStore, int]:
    """Serve a store on a free port, for workers that this process starts.

    Args:
        host: the address to serve it on, of this machine (default: of the loopback interface).

    Returns:
        The store, which lives as long as the object, and its port.
    """
    listener = socket.socket()
    listener.bind((host, 0))
    port = listener.getsockname()[1]
    store = TCPStore(host, port, None, True, wait_for_workers=False, master_listen_fd=listener.detach())
    return store, port


def connect(host: str, port: int, patience: float) -> TCPStore:
    """Return a connection of its own to a store that another process serves.

    Raises:
        RuntimeError: there is none within `patience` seconds.
    """
    return TCPStore(host, port, None, False, timedelta(seconds=patience), wait_for_workers=False)


def form(store: TCPStore, name: str, place: tuple[int, int], limit: float, patience: float) -> None:
    """Form the world of this process, over gloo.

    Args:
        store: where the members meet.
        name: of this world, in the store.
        place: (rank, size).
        limit: seconds for all to meet.
        patience: seconds for each operation afterwards.

    Raises:
        RuntimeError: somebody did not come.
    """
    rank, size = place
    within = PrefixStore(name, store)
    dist.init_process_group("gloo", store=within, rank=rank, world_size=size, timeout=timedelta(seconds=limit))
    set_timeout(dist.group.WORLD, patience)


def dissolve() -> None:
    """End the world of this process and all its groups at once, whatever is under way in them."""
    if dist.is_initialized():
        for group in all_groups():
            close_connections(group, dist.get_process_group_ranks(group))
        dist.destroy_process_group()
    reset_group_count()


def close_connections(group: Any, members: Sequence[int]) -> None:
    """Close this process's connections to members of a gloo group; the others see it at once.

    gloo closes all of them when a wait exceeds its limit: here one for a byte that nobody sends. Everything that
    is under way in the group then fails.
    """
    for member in members:
        if member != dist.get_rank():
            with contextlib.suppress(RuntimeError, ValueError):
                nothing = torch.zeros(1, dtype=torch.uint8)
                work: Any = dist.irecv(nothing, member, group, tag=NEVER)
                work.wait(timedelta(milliseconds=1))


def brief(error: BaseException) -> str:
    """Return the part of an error's first line that tells people something."""
    line = str(error).strip().split("\n")[0]
    return line.split("] ", 1)[-1].split(". This is typically")[0]
