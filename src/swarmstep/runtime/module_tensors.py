"""Which tensors of a module the workers have in common."""

from __future__ import annotations

import sys
from typing import Any

from torch import Tensor, nn

from swarmstep.comm.torch_private import non_persistent_buffers


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


def local_shard(x: Tensor) -> Tensor:
    """Return this rank's shard of a sharded tensor (DTensor, as FSDP2 makes them); any other as it is."""
    module: Any = sys.modules.get("torch.distributed.tensor")  # not loaded: there are none
    sharded: Any = x
    return sharded.to_local() if module and isinstance(x, module.DTensor) else x
