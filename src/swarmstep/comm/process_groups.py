"""The default process group of torch.distributed: formed, ended with operations under way, and formed again."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from swarmstep.comm.torch_private import PrefixStore, TCPStore, all_groups, reset_group_count, set_timeout
from swarmstep.errors import CommError
from swarmstep.waiting import Wait

FORM_TIMEOUT = 5.0  # seconds, at least, that the members of a new group have to connect
FORM_EACH = 0.6  # the same for each of them: every pair of members makes a connection
LOOPBACK = "lo" if sys.platform.startswith("linux") else "lo0"  # the interface
UNUSED_TAG = (1 << 20) - 1  # of a message that nobody sends; next to the tags of `p2p`


def serve_store(host: str = "127.0.0.1") -> tuple[TCPStore, int]:
    """Serve a store on a free port, for workers that this process starts.

    Args:
        host: an address of this machine to serve it on (default: of the loopback interface).

    Returns:
        The store, which is served as long as the object lives, and its port.

    Raises:
        CommError: nobody can reach that address, not even this process.
    """
    try:
        with socket.create_server((host, 0)) as probe:
            socket.create_connection(probe.getsockname(), FORM_TIMEOUT).close()
    except OSError as error:
        raise CommError(
            f"{host}: {os.strerror(error.errno or 0)}: the processes of a run meet at this address here; "
            "have it brought up (ip link set lo up), or train in one process with --backend sim"
        ) from None
    listener = socket.socket()
    listener.bind((host, 0))
    port = listener.getsockname()[1]
    store = TCPStore(host, port, None, True, wait_for_workers=False, master_listen_fd=listener.detach())
    return store, port


def connect(host: str, port: int, patience: float) -> TCPStore:
    """Return a new connection to a store that another process serves.

    Raises:
        RuntimeError: there is none within `patience` seconds.
    """
    return TCPStore(host, port, None, False, timedelta(seconds=patience), wait_for_workers=False)


def form(store: Any, name: str, place: tuple[int, int], limit: float, patience: float) -> None:
    """Form the default process group of this process, over gloo.

    Args:
        store: where the members meet: one of torch's, or a class of its kind.
        name: of this group in the store.
        place: (rank, size).
        limit: seconds for all members to meet.
        patience: seconds for each operation afterwards.

    Raises:
        RuntimeError: a member did not come.
    """
    rank, size = place
    prefixed = PrefixStore(name, store)
    dist.init_process_group("gloo", store=prefixed, rank=rank, world_size=size, timeout=timedelta(seconds=limit))
    set_timeout(dist.group.WORLD, patience)


def dissolve() -> None:
    """End the default process group and all others of this process at once, with operations under way."""
    if dist.is_initialized():
        with Wait("what is under way in the last group to end"):
            for group in all_groups():
                close_connections(group, dist.get_process_group_ranks(group))
            dist.destroy_process_group()
    reset_group_count()


def close_connections(group: Any, members: Sequence[int]) -> None:
    """Close this process's connections to members of a gloo group, who notice it at once.

    gloo closes a connection when a wait exceeds its limit: here, one for a byte that nobody sends. Every operation
    under way in the group then fails.
    """
    for member in members:
        if member != dist.get_rank():
            with contextlib.suppress(RuntimeError, ValueError):
                buffer = torch.zeros(1, dtype=torch.uint8)
                work: Any = dist.irecv(buffer, member, group, tag=UNUSED_TAG)
                work.wait(timedelta(milliseconds=1))


def brief(error: BaseException) -> str:
    """Return the informative part of the first line of an error of torch."""
    line = str(error).strip().split("\n")[0]
    return line.split("] ", 1)[-1].split(". This is typically")[0]
