"""What changes a model, or what it computes, beside the optimizer and the rounds."""

from __future__ import annotations

import copy
from abc import ABC
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from torch import nn
from torch.nn.utils import parametrize

from swarmstep.arguments import Checked
from swarmstep.errors import UsageError

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
Hook = Callable[[nn.Module, tuple[Any, ...]], Any]


class Modifier(Checked, ABC):
    """A change of the model, and what has to be done around its steps: parameters only, each subclass frozen.

    All that it remembers is in the model: parameters, which rounds average, or buffers. So checkpoints, newcomers
    of elastic groups, copies for the probe and views of one vector need nothing more. In a training loop::

        modifier.prepare(model)  # before the optimizer and the Synchronizer are made
        for step, batch in enumerate(batches, start=1):
            ...
            optimizer.step()
            sync.step(loss)
            modifier.after_step(model, lr, step)  # after a round that has landed in this step
        sync.finish()
        model = modifier.finished(model)

    Each method but `prepare` does nothing unless a subclass says otherwise.
    """

    acts_on_steps: ClassVar[bool] = False  # whether `after_step` does something

    def prepare(self, model: nn.Module) -> None:
        """Change the model in place, the same on all ranks and without random numbers.

        Raises:
            UsageError: it does not go with this model; names what stands against it.
        """

    def after_step(self, model: nn.Module, lr: float, step: int) -> None:
        """Change the weights after a local step and its round; a function of its arguments.

        Args:
            model: that `prepare` was given.
            lr: the inner learning rate of the step.
            step: of this worker, from 1.
        """

    def finished(self, model: nn.Module) -> nn.Module:
        """Return a model of plain modules that computes what this one does in eval mode; or itself."""
        return model

    def metrics(self, model: nn.Module) -> Mapping[str, float]:
        """Return what there is to record of the model, by name."""
        return {}


class Modifiers(Modifier):
    """Several modifiers, applied in their order.

    Args:
        parts: the modifiers.
    """

    def __init__(self, *parts: Modifier) -> None:
        self.parts = parts

    def prepare(self, model: nn.Module) -> None:
        for part in self.parts:
            part.prepare(model)

    def after_step(self, model: nn.Module, lr: float, step: int) -> None:
        for part in self.parts:
            part.after_step(model, lr, step)

    def finished(self, model: nn.Module) -> nn.Module:
        for part in reversed(self.parts):
            model = part.finished(model)
        return model

    def metrics(self, model: nn.Module) -> Mapping[str, float]:
        return {name: value for part in self.parts for name, value in part.metrics(model).items()}


def layers_of(model: nn.Module, who: str) -> dict[str, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d]:
    """Return the linear and convolution layers with a trained weight of their own, in the model's order.

    Not among them: layers that share their weight with another module, compute it from others (parametrizations,
    spectral norm), or are of a subclass, such as the output layer of nn.MultiheadAttention, which is never called.

    Args:
        model: whose layers.
        who: asks, for the error.

    Raises:
        UsageError: there is none.
    """
    owners = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
    found: dict[str, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d] = {}
    for name, module in model.named_modules():
        if isinstance(module, LAYERS) and type(module) in LAYERS and not parametrize.is_parametrized(module):
            weight = dict(module.named_parameters(recurse=False)).get("weight")
            if weight is not None and weight.requires_grad and weight.numel() and owners[id(weight)] == 1:
                found[name] = module
    if not found:
        raise UsageError(
            f"{who}: no layer found; expected a linear or convolution layer with a trained weight of its own"
        )
    return found


def hooked(layer: nn.Module, hook: Hook) -> None:
    """Let `hook` change the inputs of a layer, in copies of it, too."""
    vars(layer).setdefault("input_hooks", []).append(layer.register_forward_pre_hook(hook))


def unhooked(model: nn.Module) -> nn.Module:
    """Return a copy of a model without what `hooked` has set."""
    found = copy.deepcopy(model)
    for module in found.modules():
        for handle in vars(module).pop("input_hooks", []):
            handle.remove()
    return found
