"""Which tensors of a module the workers have in common."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from swarmstep.comm.torch_private import non_persistent_buffers
from swarmstep.errors import UsageError


def module_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return a module's parameters and its persistent buffers by name, shared ones once."""
    return {**dict(module.named_parameters()), **persistent_buffers(module)}


def persistent_buffers(module: nn.Module) -> dict[str, Tensor]:
    """Return the buffers that checkpoints hold, by name, in the order of `named_buffers`.

    A hidden state or cache that is registered with persistent=False is not among them: its shape may change from
    batch to batch. A buffer that several submodules register counts once, as the first of them has it.
    """
    found: dict[str, Tensor] = {}
    seen: set[Tensor] = set()
    for prefix, owner in module.named_modules():
        excluded = non_persistent_buffers(owner)
        for name, buffer in owner.named_buffers(prefix, recurse=False):
            if buffer not in seen and name.removeprefix(f"{prefix}.") not in excluded:
                found[name] = buffer
            seen.add(buffer)
    return found


def average_only(module: nn.Module) -> set[str]:
    """Return the parameters that rounds average, whatever the strategy does with the others.

    A module names its own as its attribute `average_only`, a tuple of names: the dual variable of a min-max
    problem, say, which no outer momentum should move. The attribute outlives copies of the module.

    Raises:
        UsageError: a module has no parameter of that name.
    """
    marked: set[int] = set()
    for owner in module.modules():
        own = dict(owner.named_parameters(recurse=False, remove_duplicate=False))
        for name in getattr(owner, "average_only", ()):
            if name not in own:
                raise UsageError(
                    f"{type(owner).__name__}.average_only: expected a tuple of its own parameters' names "
                    f"({', '.join(own) or 'it has none'}), found {name!r}"
                )
            marked.add(id(own[name]))
    return {name for name, parameter in module.named_parameters() if id(parameter) in marked}


def local_shard(x: Tensor) -> Tensor:
    """Return this rank's shard of a sharded tensor (DTensor, as FSDP2 makes them); any other as it is."""
    module: Any = sys.modules.get("torch.distributed.tensor")  # not loaded: there are none
    sharded: Any = x
    return sharded.to_local() if module and isinstance(x, module.DTensor) else x


def is_expanded(tensor: Tensor) -> bool:
    """Return whether elements of a tensor share memory, so that nothing can be written into it."""
    return any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True))


def is_statistic(buffer: Tensor) -> bool:
    """Return whether a buffer takes part in rounds: finite floating-point numbers, at least one.

    An observer that has seen nothing yet is empty or infinite, and a mask holds infinities for ever.
    """
    number = buffer.is_floating_point() and buffer.element_size() > 1  # float8 is quantized weights
    return number and buffer.numel() > 0 and bool(buffer.isfinite().all())


def check_tensors(module: nn.Module) -> None:
    """Raise UsageError, naming it, where a tensor of the module cannot be synchronized."""
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    for name, tensor in module_tensors(module).items():
        if why := _obstacle(tensor, trained=name in trained):
            kind = "parameter" if name in dict(module.named_parameters()) else "buffer"
            raise UsageError(f"{kind} {name!r} {why}")


def _obstacle(tensor: Tensor, *, trained: bool) -> str:
    """Return why a tensor cannot be synchronized, and what to do; nothing where it can."""
    if nn.parameter.is_lazy(tensor):
        return "has no shape yet (a lazy module); run one batch through the model before making the Synchronizer"
    if tensor.device.type == "meta":
        return "is on the meta device; give it memory and values first (module.to_empty, then its initialization)"
    if trained and tensor.element_size() == 1:
        return f"is trained as {tensor.dtype}; expected a type that optimizers work in: float32, bfloat16"
    if tensor.layout != torch.strided or (trained and not tensor.is_floating_point()):
        return f"is {tensor.dtype}, {tensor.layout}; expected dense real floating point"
    if is_expanded(tensor):
        return "is expanded: several of its elements share memory; register tensor.clone() instead"
    return ""


def check_wrappers(module: nn.Module) -> None:
    """Raise UsageError where the module, or one in it, synchronizes gradients by itself at every step."""
    fsdp: Any = sys.modules.get("torch.distributed.fsdp")  # not loaded: nobody uses it
    kinds = (DataParallel, DistributedDataParallel, *([fsdp.FullyShardedDataParallel] if fsdp else []))
    for name, part in module.named_modules():
        if isinstance(part, kinds):
            raise UsageError(
                f"{f'module {name!r}' if name else 'the model'} is a {type(part).__name__}, which synchronizes "
                "gradients at every step beside the rounds; give the Synchronizer, and train, the module inside "
                "(wrapper.module), or for a model in shards use fully_shard with Options(island=...)"
            )


def sharded(module: nn.Module) -> str:
    """Return the name of a parameter that is spread over several ranks (DTensor); nothing if there is none."""
    for name, parameter in module.named_parameters():
        mesh: Any = getattr(parameter, "device_mesh", None)
        if mesh is not None and mesh.size() > 1:
            return name
    return ""
