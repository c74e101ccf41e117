"""Until the first step: weights that are loaded too late, and a wrapper that is put around the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from swarmstep.comm.torch_private import active_data_parallel
from swarmstep.errors import UsageError


class FirstStep:
    """Looks, from the construction of a Synchronizer to its first step, at what happens to the model.

    Anchors and velocities are made from the weights at the construction. Whoever loads others afterwards would
    have the first rounds pull back to the old ones. Loading shows in two places: where `load_state_dict` ends, and
    where training begins with other weights than at the construction: before the first forward pass with
    gradients (some layers change weights in it), else at the first backward pass.

    Args:
        module: hooks are registered on it and its parameters, and removed by `end`.
        wrapped: whether a wrapper is allowed: where there are no rounds, nothing goes on beside its own.
    """

    def __init__(self, module: nn.Module, *, wrapped: bool = False) -> None:
        self._module, self._wrapped = module, wrapped
        self._norms = _norms(module)
        self._trained = False  # whether training has begun: from then on weights may change
        self._loaded = ""  # the first parameter that was found changed before that
        self._wrapper = ""
        look, forward = _Hook(self._look), _Hook(self._look_around)
        self._handles = [part.register_load_state_dict_post_hook(look) for part in module.modules()]
        self._handles.append(module.register_forward_pre_hook(forward))
        begin = _Hook(self._begin)
        for parameter in module.parameters():
            if parameter.requires_grad and parameter.is_leaf:
                self._handles.append(parameter.register_post_accumulate_grad_hook(begin))

    def end(self) -> None:
        """Stop looking; raise UsageError for what was seen."""
        self.forget()
        if self._wrapper and not self._wrapped:
            raise UsageError(
                f"the model runs inside of {self._wrapper}, which averages gradients at every step beside the "
                "rounds; train the model itself, without the wrapper"
            )
        if self._loaded:
            raise UsageError(
                f"parameter {self._loaded!r} was changed after the Synchronizer was made and before the first "
                "step; load weights before making it, or a checkpoint's with Synchronizer.load_state_dict as well"
            )

    def forget(self) -> None:
        """Stop looking, whatever was seen."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def loaded(self) -> None:
        """Take note that the weights are now those of a checkpoint whose states are loaded, too."""
        self._loaded, self._norms = "", _norms(self._module)

    def _look(self, *_: Any) -> None:
        if not self._trained:
            found = _norms(self._module)
            changed = [name for name, norm in found.items() if norm != self._norms.get(name, norm)]
            self._loaded = changed[0] if changed else ""

    def _look_around(self, *_: Any) -> None:
        self._wrapper = self._wrapper or active_data_parallel()
        if self._module.training and torch.is_grad_enabled():
            self._begin()

    def _begin(self, *_: Any) -> None:
        self._look()
        self._trained = True


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
def _norms(module: nn.Module) -> dict[str, float]:
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    return {name: _norm(parameter) for name, parameter in trained.items()}


def _norm(parameter: Tensor) -> float:
    return float(torch.linalg.vector_norm(parameter.detach(), dtype=torch.float64))
