"""How a newcomer gets what a healthy member has: sent as data, read as data."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from swarmstep.comm.base import Comm
from swarmstep.errors import CommError
from swarmstep.runtime.module_tensors import local_shard, module_tensors


def hand_over(make: Callable[[], dict[str, Any]], comm: Comm, donor: int) -> dict[str, Any]:
    """Return what `make` returns on the rank `donor`, where alone it is called. Collective.

    Args:
        make: returns numbers, strings, tensors, and lists and dictionaries of them.
        comm: the group.
        donor: a rank that is no newcomer.

    Raises:
        CommError: what arrived is something else.
    """
    content = torch.empty(0, dtype=torch.uint8)
    if comm.rank == donor:
        buffer = io.BytesIO()
        torch.save(make(), buffer)
        content = torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)
    length = int(comm.broadcast(torch.tensor(len(content)), donor))
    room = content if comm.rank == donor else torch.empty(length, dtype=torch.uint8)
    received = comm.broadcast(room, donor)
    try:
        parcel = torch.load(io.BytesIO(bytes(received.numpy())), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever foreign bytes lead to
        raise CommError(f"what rank {donor} handed over cannot be read ({type(error).__name__})") from error
    if not isinstance(parcel, dict):
        raise CommError(f"what rank {donor} handed over is a {type(parcel).__name__}, expected a dictionary")
    return parcel


def is_finite(value: Any) -> bool:
    """Return whether all numbers are finite in a nest of lists, dictionaries and tensors."""
    if isinstance(value, Tensor):
        return bool(value.isfinite().all())
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return all(is_finite(part) for part in inner)


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Return copies of a module's parameters, trained or not, and of its persistent buffers."""
    return {name: local_shard(tensor.detach()).clone() for name, tensor in module_tensors(module).items()}


@torch.no_grad()
def take_over(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Copy what `tensors_of` returned into a module of the same kind."""
    for name, tensor in module_tensors(module).items():
        local_shard(tensor.detach()).copy_(tensors[name])
