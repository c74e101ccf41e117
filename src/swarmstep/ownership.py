"""Who owns a field of a state, so that a change of membership can carry it over."""

from __future__ import annotations

from typing import Annotated

from torch import Tensor

# Whose a field of a state is, so that a change of membership can carry it over (strategies/base.py).
Shared = Annotated[Tensor, "shared"]  # equal on all ranks
Own = Annotated[Tensor, "own"]  # this worker's; one that joins makes its own
PerWorker = Annotated[Tensor, "per worker"]  # equal on all ranks, indexed [worker, ...]
Inherited = Annotated[Tensor, "inherited"]  # this worker's; one that joins goes on from another's
Derived = Annotated[Tensor, "derived"]  # what `init` derives from the layout and the group's size; never changes
Place = Annotated[Tensor, "place"]  # this worker's, and of use only at this rank
