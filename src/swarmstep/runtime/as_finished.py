"""The model as `finish` would leave it, for a while; then everything is as it was, bit for bit."""

from __future__ import annotations

import contextlib
from collections.abc import Generator

import torch
from torch import Tensor, nn

from swarmstep.runtime import fragment_state
from swarmstep.runtime.module_tensors import is_expanded, local_shard
from swarmstep.runtime.replica import Replica
from swarmstep.runtime.rounds import Rounds


@contextlib.contextmanager
def as_finished(replica: Replica, rounds: Rounds) -> Generator[None]:
    """Let the model be the result in the context: what is under way lands for its time only. Collective."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(kept(replica.model))
        for fragment in rounds.group.fragments:
            if fragment.pending:
                stack.enter_context(fragment_state.preserved(fragment))
                fragment.land()
        replica.flat.write(rounds.result())
        yield


@contextlib.contextmanager
def kept(model: nn.Module) -> Generator[None]:
    """Give a model back at the end of the context: parameters, frozen or not, all buffers, and the modes.

    What is drawn meanwhile from torch's global generators, of the CPU and of the model's device, is not missed
    afterwards.
    """
    modes = {part: part.training for part in model.modules()}
    buffers = [(part, dict(part.named_buffers(recurse=False, remove_duplicate=False))) for part in modes]
    tensors = [local_shard(tensor.detach()) for tensor in (*model.parameters(), *model.buffers())]
    values = [tensor.clone() for tensor in tensors]
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    memory = [(t, t.data) for t in (*model.parameters(), *gradients) if local_shard(t) is t]
    devices = {tensor.device for tensor in tensors if tensor.device.type == "cuda"}
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        if model.training != modes[model]:
            model.train(modes[model])  # a module may do something of its own in it
        for part, mode in modes.items():
            part.training = mode
        for part, own in buffers:
            for name, buffer in own.items():
                setattr(part, name, buffer)
        for tensor, own_data in memory:
            if (tensor.dtype, tensor.data_ptr()) != (own_data.dtype, own_data.data_ptr()):  # model.half(), say
                tensor.data = own_data
        _put_back(tensors, values)


@torch.no_grad()
def _put_back(tensors: list[Tensor], values: list[Tensor]) -> None:
    for tensor, value in zip(tensors, values, strict=True):
        if not is_expanded(tensor):  # else it is a constant: a mask, say
            tensor.copy_(value)
