"""A private copy of a module, for the probe: it shares frozen weights, and follows what else the model has."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from swarmstep.errors import UsageError

SIMPLE = (bool, int, float, complex, str, bytes, tuple, type(None), torch.dtype, torch.device)


class ModelCopy:
    """A copy of a module in evaluation mode; its trained parameters are its own, frozen ones are the model's.

    Where a module does something of its own in `train` and `eval` (LoRA that merges its update into the frozen
    weights, say), the copy has frozen parameters of its own, too. Neither is called here: that would merge what is
    about to be replaced.

    Args:
        model: what is copied; it is not changed.

    Attributes:
        module: the copy.

    Raises:
        UsageError: the model cannot be copied.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._shares = all(type(part).train is nn.Module.train for part in model.modules())
        memo: dict[int, Any] = {id(p): p for p in model.parameters() if self._shares and not p.requires_grad}
        for module in model.modules():
            for value in vars(module).values():
                if isinstance(value, Tensor) and value.grad_fn is not None:  # what old weight_norm computes
                    memo[id(value)] = value.detach().clone()
        try:
            self.module = copy.deepcopy(model, memo)
        except Exception as error:  # whatever the module holds: a lock, a file, a generator
            raise UsageError(
                f"the probe needs a copy of the model, and copy.deepcopy(model) fails: {error}; give what cannot "
                "be copied a __deepcopy__, or choose a strategy without a probe"
            ) from error
        for part in self.module.modules():
            part.training = False

    @torch.no_grad()
    def follow(self) -> None:
        """Take over what the model has now, except for its trained parameters.

        Frozen parameters are the model's own, buffers are copied, and the numbers and strings that modules hold as
        attributes (a temperature, a count of calls) are set.

        Raises:
            UsageError: a submodule was added, removed or renamed.
        """
        pairs = dict(self._model.named_modules()), dict(self.module.named_modules())
        odd = sorted(pairs[0].keys() ^ pairs[1].keys())
        if odd:
            raise UsageError(
                f"submodule {odd[0]!r} was added or removed since the Synchronizer was made; make a new one at "
                "the same step on all ranks"
            )
        for source, copied in zip(*(found.values() for found in pairs), strict=True):
            for name, parameter in source.named_parameters(recurse=False):
                if not parameter.requires_grad:
                    self._take_parameter(copied, name, parameter)
            for name, buffer in source.named_buffers(recurse=False):
                own = copied._buffers.get(name)
                if own is not None and (own.shape, own.dtype) == (buffer.shape, buffer.dtype):
                    own.copy_(buffer)
                else:
                    copied._buffers[name] = buffer.clone()
            values = {name: value for name, value in vars(source).items() if isinstance(value, SIMPLE)}
            vars(copied).update({**values, "training": False})

    def _take_parameter(self, copied: nn.Module, name: str, parameter: nn.Parameter) -> None:
        if self._shares:
            setattr(copied, name, parameter)
        else:
            getattr(copied, name).copy_(parameter)
