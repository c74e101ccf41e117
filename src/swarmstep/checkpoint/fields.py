"""The fields of a saved state: copied, and compared one by one before anything is loaded."""

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
    """Return a field of a saved state; raise CheckpointError where it is missing."""
    if name not in saved:
        raise CheckpointError(f"{name}: missing from the checkpoint; another version of swarmstep wrote it")
    return saved[name]


def same(field: str, expected: object, found: object) -> None:
    """Raise CheckpointError, naming the field, unless the two are equal."""
    if expected != found:
        raise CheckpointError(
            f"{field}: expected {expected} (this run), found {found} (the checkpoint); use the settings of the "
            "checkpoint, or start anew"
        )


def pairs(part: str, own: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Return (own tensor, saved value) of each field; raise CheckpointError where they do not match."""
    same(f"fields of {part}", sorted(own), sorted(saved))
    for name, tensor in own.items():
        same(f"{part}.{name}", (tensor.dtype, tensor.shape), (saved[name].dtype, saved[name].shape))
    return [(tensor, saved[name]) for name, tensor in own.items()]
