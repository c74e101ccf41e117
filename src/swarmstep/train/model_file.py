"""The trained model as a file that any tool reads: model.safetensors."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from swarmstep.errors import CheckpointError, UsageError
from swarmstep.runtime.module_tensors import module_tensors


def save_model(model: nn.Module, path: Path) -> None:
    """Write parameters and persistent buffers, tied ones once, under the names that the modules give them.

    What modules return as extra state (`get_extra_state`) is in the file's metadata, as JSON by module.

    Raises:
        UsageError: an extra state is no JSON; `check_extra_state` finds that before the run.
    """
    from safetensors.torch import save_file

    save_file(_tensors(model), str(path), {"format": "pt", **check_extra_state(model)})


def check_extra_state(model: nn.Module) -> dict[str, str]:
    """Return the modules' extra states as metadata of a file.

    Raises:
        UsageError: names the module whose extra state is no JSON.
    """
    states: dict[str, object] = {}
    for name, module in model.named_modules():
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            states[name] = module.get_extra_state()
            try:
                json.dumps(states[name])
            except (TypeError, ValueError) as error:
                raise UsageError(
                    f"module {name or 'model'!r}: get_extra_state returns what the run's model.safetensors cannot "
                    f"hold ({error}); return numbers, strings, lists, dictionaries, or register tensors as buffers"
                ) from None
    return {"extra_state": json.dumps(states)} if states else {}


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    # Copies: the format takes neither views of others' memory nor tensors that are not contiguous.
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in module_tensors(model).items()}


def load_model(model: nn.Module, path: Path) -> None:
    """Set a model's parameters and persistent buffers from a file that `save_model` wrote.

    Raises:
        CheckpointError: there is no such file, it is damaged, or it is of another model.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        saved = load_file(str(path))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}; a run writes it when it is done") from None
    own = module_tensors(model)
    for name in sorted(saved.keys() | own.keys()):
        found, expected = (tuple(x[name].shape) if name in x else None for x in (saved, own))
        if found != expected:
            raise CheckpointError(
                f"{path}: {name!r} has shape {found}, expected {expected}; it is of another model"
            )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(saved[name])
