"""Before step 1: all ranks are configured alike, and start from rank 0's weights."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from swarmstep.comm.base import Comm
from swarmstep.errors import Disagreement, NotFinite, UsageError
from swarmstep.runtime.module_tensors import local_shard, module_tensors
from swarmstep.runtime.options import Options
from swarmstep.strategies.base import Strategy


def agree(description: Mapping[str, str], comm: Comm) -> None:
    """Raise Disagreement, the same on all ranks, unless `description` is the same on all ranks.

    Costs one gather of 32 bytes as long as all is well.

    Args:
        description: field -> value, as people would read them in the message.
        comm: the group.
    """
    text = json.dumps(description).encode()
    digest = torch.frombuffer(bytearray(hashlib.sha256(text).digest()), dtype=torch.uint8)
    rows = comm.gather(digest)
    if (rows == rows[0]).all():
        return
    lengths = comm.gather(torch.tensor(len(text)))
    padded = torch.zeros(int(lengths.max()), dtype=torch.uint8)
    padded[: len(text)] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    texts = comm.gather(padded)
    said = [json.loads(bytes(row[:n].tolist())) for row, n in zip(texts, lengths.tolist(), strict=True)]
    for rank, theirs in enumerate(said):
        for field in {**said[0], **theirs}:
            expected, found = said[0].get(field, "absent"), theirs.get(field, "absent")
            if expected != found:
                raise Disagreement(
                    f"the ranks disagree on {field}: rank 0 has {expected}, rank {rank} has {found}; start all "
                    "ranks with the same model, strategy and options",
                    rank,
                )


def agree_on_loss(loss: float, comm: Comm) -> None:
    """Raise unless the probe's loss, from equal weights, is the same on all ranks to 0.1 %.

    Raises:
        Disagreement: it is not.
        NotFinite: it is NaN or infinite somewhere.
    """
    losses = comm.gather(torch.tensor(loss, dtype=torch.float64)).tolist()
    for rank, found in enumerate(losses):
        if not math.isfinite(found):
            raise NotFinite(
                f"the probe's loss is {found} on rank {rank} before step 1; expected a finite number: look at "
                "the probe batch and the first weights"
            )
        if not abs(found - losses[0]) <= 1e-3 * abs(losses[0]):
            raise Disagreement(
                f"the ranks disagree on the probe's loss: rank 0 has {losses[0]:.6g}, rank {rank} has "
                f"{found:.6g} with equal weights; give all ranks the same probe batch"
            )


@torch.no_grad()
def start_alike(module: nn.Module, comm: Comm) -> None:
    """Give all ranks rank 0's parameters, trained or not, and its persistent buffers.

    Frozen parameters, which may be most of a model, are compared by digests, and only sent where they differ.
    """
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    tensors = {name: local_shard(tensor.detach()) for name, tensor in module_tensors(module).items()}
    frozen = [name for name, _ in module.named_parameters() if name not in trained]
    equal = dict(zip(frozen, _equal([tensors[name] for name in frozen], comm), strict=True))
    for name, tensor in tensors.items():
        if tensor.numel() and not equal.get(name, False):
            tensor.copy_(_received(tensor, comm))


def _received(tensor: Tensor, comm: Comm) -> Tensor:
    """Return rank 0's tensor; what no backend sends travels as bytes."""
    if tensor.is_complex() or tensor.element_size() == 1:  # float8, bool
        content = tensor.contiguous().reshape(-1).view(torch.uint8)
        return comm.broadcast(content, 0).view(tensor.dtype).view(tensor.shape)
    return comm.broadcast(tensor, 0)


def _equal(tensors: list[Tensor], comm: Comm) -> list[bool]:
    """Return for each tensor whether all ranks have the same bits. Collective, unless there is none."""
    if not tensors:
        return []
    content = [tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy() for tensor in tensors]
    digests = b"".join(hashlib.sha256(part.data).digest() for part in content)
    rows = comm.gather(torch.frombuffer(bytearray(digests), dtype=torch.uint8))
    return (rows == rows[0]).view(len(rows), len(tensors), -1).all(dim=2).all(dim=0).tolist()


def check_elastic(strategy: Strategy, options: Options) -> None:
    """Raise UsageError where an elastic group cannot run a strategy, or not with these options."""
    if strategy.when.timed and (options.delay or options.fragments > 1):
        raise UsageError(
            f"{strategy.when}: an elastic group begins its rounds by time when all have come; expected no delay "
            f"and 1 fragment, found {options.delay} and {options.fragments}"
        )
    if strategy.when.per_rank and not strategy.when.timed:
        raise UsageError(
            f"{strategy.when}: in an elastic group all workers take the same number of steps between rounds; "
            "expected one number for all"
        )
    if strategy.target == "gradients":
        raise UsageError(
            f"{type(strategy).__name__} synchronizes gradients, and workers that join later would not hold the "
            "same weights to the bit; an elastic group takes any strategy that synchronizes weights"
        )
    if strategy.follows_up:
        raise UsageError(
            f"{type(strategy).__name__} still sends after a round has landed, which nobody votes on; an elastic "
            "group needs a round that is over when it lands (GASLoC: overlapped=none)"
        )
