"""Plain dropout before the layers of any model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast, final

from torch import nn
from torch.nn.functional import dropout

from swarmstep.errors import UsageError
from swarmstep.modifier import Modifier, hooked, layers_of, unhooked


@final
@dataclass(frozen=True)
class Dropout(Modifier):
    """Dropout of the inputs of all linear and convolution layers but the first, whose inputs are the data.

    Args:
        p: the chance of an element to be dropped, 0 to below 1; what is kept is divided by 1 - p.

    Raises:
        UsageError: p is out of its range.
    """

    p: float = 0.5

    def __post_init__(self) -> None:
        if not 0.0 <= self.p < 1.0:
            raise UsageError(f"Dropout: p: expected 0 to below 1, found {self.p}")

    def prepare(self, model: nn.Module) -> None:
        first, *layers = layers_of(model, "Dropout").items()
        if not layers:
            raise UsageError(
                f"Dropout: expected a layer after {first[0]!r}, whose inputs are the data; found none"
            )
        for _, layer in layers:
            cast(Any, layer).dropped = self.p
            hooked(layer, _drop)

    def finished(self, model: nn.Module) -> nn.Module:
        """Return a copy without dropout."""
        return unhooked(model)


def _drop(layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return dropout(inputs[0], cast(Any, layer).dropped, layer.training), *inputs[1:]
