"""Entering a network namespace, for a forked worker or for one thread."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from swarmstep.errors import CommError

T = TypeVar("T")

FOLDER = Path("/run/netns")  # where iproute2 keeps the names of namespaces
CLONE_NEWNET = 0x40000000


def enter(name: str) -> None:
    """Let the calling thread live in a namespace from now on; a process that has one thread moves as a whole.

    Raises CommError where the kernel does not let it.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    with (FOLDER / name).open() as file:
        if libc.setns(file.fileno(), CLONE_NEWNET):
            raise CommError(f"network: cannot enter {name}: {os.strerror(ctypes.get_errno())}")


def inside(name: str, function: Callable[[], T]) -> T:
    """Call a function in a thread of this process that lives in a namespace; its sockets stay there."""
    results: list[T] = []
    errors: list[BaseException] = []

    def call() -> None:
        try:
            enter(name)
            results.append(function())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=call, name="swarmstep-network", daemon=True)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
