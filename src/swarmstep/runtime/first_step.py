"""Until the first step: weights that are loaded too late, and a wrapper that is put around the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from swarmstep.comm.data_parallel import inside_data_parallel
from swarmstep.errors import UsageError


class FirstStep:
    """Looks, from the construction of a Synchronizer to its first step, at what happens to the model.

    Anchors and velocities are made from the weights at the construction. Whoever loads others afterwards, by
    `load_state_dict` of the model or a part of it, would have the first rounds pull back to the old ones. Weights
    that are changed in other ways (clamped, normalized, copied into) are taken for training.

    Args:
        module: hooks are registered on it, and removed by `end`.
        wrapped: whether a wrapper is allowed: where there are no rounds, nothing goes on beside its own.
    """

    def __init__(self, module: nn.Module, *, wrapped: bool = False) -> None:
        self._module, self._wrapped = module, wrapped
        self._norms = _norms(module)
        self._prefixes = {part: prefix for prefix, part in module.named_modules()}
        self._loaded: set[str] = set()  # the parameters that a load has changed
        look = _Hook(self._look)
        self._handles = [part.register_load_state_dict_post_hook(look) for part in module.modules()]

    def end(self) -> None:
        """Stop looking; raise UsageError for what was seen."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if not self._wrapped and inside_data_parallel(self._module):
            raise UsageError(
                "the model is inside of a DistributedDataParallel, which averages gradients at every step beside "
                "the rounds; train the model itself, without the wrapper"
            )
        if self._loaded:
            first = next(name for name in self._norms if name in self._loaded)
            raise UsageError(
                f"parameter {first!r} was loaded after the Synchronizer was made and before the first step;"
                " load weights before making it, or a checkpoint's with Synchronizer.load_state_dict as well"
            )

    def loaded(self) -> None:
        """Take note that the weights are now those of a checkpoint whose states are loaded, too."""
        self._loaded, self._norms = set(), _norms(self._module)

    def _look(self, part: nn.Module, *_: Any) -> None:
        """Look at a module's own parameters: a load ends with a call for each module in it."""
        found = _norms(part, self._prefixes[part], recurse=False)
        self._loaded -= found.keys()
        self._loaded |= {name for name, norm in found.items() if norm != self._norms.get(name, norm)}


class _Hook:
    """A hook that stays behind when the module that it is registered on is copied or saved."""

    def __init__(self, call: Callable[..., None] | None = None) -> None:
        self._call = call

    def __call__(self, *arguments: Any) -> None:
        if self._call:
            self._call(*arguments)

    def __deepcopy__(self, memo: Any) -> _Hook:
        return _Hook()

    def __reduce__(self) -> Any:
        return _Hook, ()


@torch.no_grad()
def _norms(module: nn.Module, prefix: str = "", *, recurse: bool = True) -> dict[str, float]:
    named = module.named_parameters(prefix, recurse)
    trained = {name: p.detach() for name, p in named if p.requires_grad}
    return {name: float(torch.linalg.vector_norm(p, dtype=torch.float64)) for name, p in trained.items()}
