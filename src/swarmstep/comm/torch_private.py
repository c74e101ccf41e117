"""What is used of torch beyond its public interface; each function has a test that fails when torch changes it."""

from __future__ import annotations

import ctypes
from datetime import timedelta
from typing import Any

import torch.distributed.distributed_c10d as distributed_c10d
from torch import nn
from torch._C._distributed_c10d import (  # public in torch.distributed, but not annotated there
    PrefixStore,
    ProcessGroupGloo,
    Store,
    TCPStore,
)

__all__ = [
    "PrefixStore",
    "Store",
    "TCPStore",
    "all_groups",
    "groups_made",
    "leak",
    "non_persistent_buffers",
    "pair_group",
    "reset_group_count",
    "set_timeout",
]


def set_timeout(group: Any, seconds: float) -> None:
    """Limit each future operation of a process group to so many seconds."""
    distributed_c10d._set_pg_timeout(timedelta(seconds=seconds), group)  # pyright: ignore[reportPrivateUsage]


def all_groups() -> list[Any]:
    """Return all process groups of this process."""
    return list(_world().pg_map)


def groups_made() -> int:
    """Return how many process groups this process has: torch names the next one after this count."""
    return len(_world().pg_names)


def reset_group_count() -> None:
    """Let torch count process groups from 0 again.

    It counts a default group that could not be formed, too, and default groups with different numbers never meet.
    """
    _world().group_count = 0


def pair_group(store: Any, rank: int, address: str, seconds: float) -> Any:
    """Return a gloo group of two ranks that is in no list of torch's, so that nothing else depends on it.

    Args:
        store: where the two meet; both give the same, which nobody has used before.
        rank: of this process, 0 or 1.
        address: of this machine, by which the other reaches it.
        seconds: for the other to come, and for an operation without a limit of its own.

    Raises:
        RuntimeError: the other did not come.
    """
    gloo: Any = ProcessGroupGloo
    options = gloo._Options()
    options._devices = [gloo.create_device(hostname=address)]
    options._timeout = timedelta(seconds=seconds)
    return gloo(store, rank, 2, options)


def leak(group: Any) -> None:
    """Never destroy a process group: its destructor would wait for the operation under way, up to the timeout."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(group))


def non_persistent_buffers(module: nn.Module) -> set[str]:
    """Return the names of the buffers that this module, not its submodules, registered with persistent=False."""
    return module._non_persistent_buffers_set  # pyright: ignore[reportPrivateUsage]


def _world() -> Any:
    return distributed_c10d._world  # pyright: ignore[reportPrivateUsage]
