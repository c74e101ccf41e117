"""Who owns a field of a state, and how a change of membership carries the state over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple, TypeVar, get_type_hints

import torch
from torch import Tensor

from swarmstep.errors import UsageError

# Each field of the state of a strategy, trigger or codec is annotated with one of these.
Shared = Annotated[Tensor, "shared"]  # equal on all ranks
Own = Annotated[Tensor, "own"]  # this worker's; a newcomer makes its own
PerWorker = Annotated[Tensor, "per worker"]  # equal on all ranks, indexed [worker, ...]
Inherited = Annotated[Tensor, "inherited"]  # this worker's; a newcomer goes on from another's
Derived = Annotated[Tensor, "derived"]  # `init` computes it from the layout and the group's size; never changes
Place = Annotated[Tensor, "place"]  # this worker's, and of use only at this rank

S = TypeVar("S", bound=NamedTuple)


def carry(state: S, fresh: S, sources: Sequence[int | None], rank: int) -> S:
    """Return the state that rank `rank` of a changed group has, in new tensors.

    It follows from the annotations of the fields::

        Shared, Inherited   state's
        Own                 state's for a survivor, fresh's for a newcomer
        PerWorker           row i is state's row sources[i], fresh's row i for a newcomer
        Place               state's for a survivor whose rank has not changed, else fresh's
        Derived             fresh's

    Any other field than a PerWorker whose shape differs in the new group is fresh's.

    Args:
        state: this worker's, or a survivor's if this worker is a newcomer.
        fresh: what `init` returns in the new group, at this worker's x.
        sources: for each rank of the new group its rank in the old one, None for a newcomer.
        rank: this worker's, in the new group.

    Raises:
        UsageError: `sources` names no survivor, or one twice; or a field has no such annotation.
    """
    survivors = [source for source in sources if source is not None]
    if not survivors or len(set(survivors)) < len(survivors) or min(survivors) < 0:
        raise UsageError(f"sources: expected ranks of the old group, each once and at least one, found {sources}")
    hints = get_type_hints(type(fresh), include_extras=True)
    old, new = state._asdict(), fresh._asdict()
    return fresh._replace(**{name: _carried(hints[name], old[name], new[name], sources, rank) for name in new})


def _carried(hint: Any, old: Tensor, new: Tensor, sources: Sequence[int | None], rank: int) -> Tensor:
    """Return one field of a state in a changed group, as a new tensor on the device of `new`."""
    kind, source = getattr(hint, "__metadata__", ("none",))[0], sources[rank]
    kept = {
        "shared": True,
        "inherited": True,
        "own": source is not None,
        "per worker": True,
        "place": source == rank,
        "derived": False,
    }
    if kind not in kept:
        raise UsageError(
            f"state: expected each field to be annotated Shared, Own, PerWorker, ..., found {hint}; see "
            "swarmstep.ownership"
        )
    old = old.to(new.device)
    if kind == "per worker":
        return torch.stack([new[i] if source is None else old[source] for i, source in enumerate(sources)])
    return (old if kept[kind] and old.shape == new.shape else new).clone()
