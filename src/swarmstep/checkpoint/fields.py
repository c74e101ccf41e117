"""States as a checkpoint holds them: taken down, and compared field by field before anything is loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from swarmstep.errors import CheckpointError


def fingerprint(x: Tensor) -> str:
    """Return a digest of the bits of x."""
    return hashlib.sha256(x.cpu().numpy().tobytes()).hexdigest()


def tensors(state: NamedTuple) -> dict[str, Tensor]:
    """Return copies of a state's tensors by name."""
    return {name: tensor.clone() for name, tensor in state._asdict().items()}


def field(saved: Mapping[str, Any], name: str) -> Any:
    """Return a field of what was saved; CheckpointError where it is missing."""
    if name not in saved:
        raise CheckpointError(f"{name}: missing from the checkpoint; it was not written by this version")
    return saved[name]


def same(field: str, expected: object, found: object) -> None:
    """Raise CheckpointError, naming the field, unless the two are equal."""
    if expected != found:
        raise CheckpointError(
            f"{field}: expected {expected} (this run), found {found} (the checkpoint); go on with the "
            "settings of the checkpoint, or start anew"
        )


def pairs(part: str, mine: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Return (tensor, saved value) of each field, checked."""
    same(f"fields of {part}", sorted(mine), sorted(saved))
    for name, tensor in mine.items():
        same(f"{part}.{name}", (tensor.dtype, tensor.shape), (saved[name].dtype, saved[name].shape))
    return [(tensor, saved[name]) for name, tensor in mine.items()]
