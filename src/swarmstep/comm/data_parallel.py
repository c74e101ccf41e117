"""torch's DistributedDataParallel, as a baseline, with the errors of swarmstep."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Generator

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from swarmstep.errors import CommError


@contextlib.contextmanager
def limited(what: str) -> Generator[None]:
    """Turn torch's error about a lost peer into a CommError that names the operation `what`."""
    try:
        yield
    except RuntimeError as error:
        raise CommError(f"{what}: {str(error).splitlines()[0]}") from error


def data_parallel(module: nn.Module, *, bfloat16: bool = False) -> nn.Module:
    """Return a module wrapped in torch's DistributedDataParallel, its gradients sent as bfloat16 on request."""
    wrapped = DistributedDataParallel(module)
    if bfloat16:
        # Wrapped: torch accepts the hook itself only with NCCL, though gloo adds bfloat16 as well.
        wrapped.register_comm_hook(None, lambda state, bucket: bf16_compress_hook(state, bucket))
    return wrapped


def reduce_gradient(gradient: Tensor) -> None:
    """Sum a flat gradient over all ranks as torch's DistributedDataParallel does, in place. Collective."""
    with limited("all-reduce"):
        dist.all_reduce(gradient)


def inside_data_parallel(module: nn.Module) -> bool:
    """Return whether a DistributedDataParallel of this process holds the module; torch keeps no list of them."""
    if not dist.is_initialized():
        return False
    # What refers to the module; a wrapper does so by its dictionary of submodules.
    dictionaries = [thing for thing in gc.get_referrers(module) if type(thing) is dict]
    submodules = [found for found in dictionaries if found.get("module") is module]
    owners = [owner for found in submodules for holder in gc.get_referrers(found) for owner in _owners(holder)]
    return any(isinstance(owner, DistributedDataParallel) for owner in owners)


def _owners(holder: object) -> list[object]:
    """Return the holder of a dictionary of submodules; of one that is a dictionary itself, its holders."""
    return gc.get_referrers(holder) if type(holder) is dict else [holder]
