"""N:M sparsity for a model's linear and convolution layers, and the plain model with zeros at the end."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast, final

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from swarmstep.errors import UsageError
from swarmstep.modifier import Modifier, layers_of
from swarmstep.sparse.masking import NMMask


@final
@dataclass(frozen=True)
class NM(Modifier):
    """N:M sparsity with SR-STE: in each m consecutive weights of a row, the n largest magnitudes count.

    ::

        w~ = mask * w                                      what the layer computes with
        gradient of w = gradient of w~ + decay (1 - mask) w    so a pruned weight fades, and may come back

    The optimizer and the rounds have the dense weights w. The gradient's second term passes through the optimizer
    like the first (momentum, AdamW's scaling), as in the authors' code. It needs a backward pass of the layer.

    Layers whose weights are pruned: linear and convolution layers with trained weights of their own, whose rows m
    divides. The others stay dense: a first convolution of three channels, say, frozen layers, a weight that
    several modules share.

    Args:
        n: how many of m weights count, 1 to m.
        m: weights in a group, at least 1. GPUs compute faster with 2:4.
        decay: lambda of the paper, at least 0. 0 is the plain straight-through estimator (STE).
        dense: names of layers that stay dense, as `model.named_modules()` has them.

    Raises:
        UsageError: a number is out of its range.

    Cost: a byte for each weight, and the mask, which is found anew in each forward pass: m (m - 1) / 2 comparisons
    for m weights.

    Source: Zhou et al., ICLR 2021, arXiv 2102.04010, and the authors' code, from which the default of `decay` is.
    Ours: of equal magnitudes the first counts; which layers stay dense; that workers average dense weights.
    """

    n: int = 2
    m: int = 4
    decay: float = 2e-4
    dense: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_ratio("NM", self.n, self.m)
        if not 0.0 <= self.decay < math.inf:
            raise UsageError(f"NM: decay: expected a number of at least 0, found {self.decay}")

    def prepare(self, model: nn.Module) -> None:
        """Prune the model's layers.

        Raises:
            UsageError: a name in `dense` is no layer's, no layer can be pruned, or one is already.
        """
        if any(True for _ in masks(model)):
            raise UsageError("NM: the model is pruned already; expected a model of plain layers")
        layers = layers_of(model, "NM")
        if unknown := [name for name in self.dense if name not in layers]:
            raise UsageError(f"NM: dense: {unknown[0]!r} is no layer; expected some of {', '.join(layers)}")
        found = [
            layer
            for name, layer in layers.items()
            if name not in self.dense and layer.weight[0].numel() % self.m == 0
        ]
        if not found:
            shapes = ", ".join(f"{name} {list(layer.weight.shape)}" for name, layer in layers.items())
            raise UsageError(f"NM: no layer to prune: expected one whose rows {self.m} divides, found {shapes}")
        for layer in found:
            mask = NMMask(layer.weight, self.n, self.m, self.decay)
            parametrize.register_parametrization(layer, "weight", mask)

    def finished(self, model: nn.Module) -> nn.Module:
        """Return `export(model)`."""
        return export(model)

    def metrics(self, model: nn.Module) -> Mapping[str, float]:
        """Return the pruned fraction of all parameters, and the mask's flips for each prunable weight so far."""
        sizes = [mask.mask.numel() for mask in masks(model)]
        total = sum(p.numel() for p in model.parameters())
        zeros = sum(sizes) * (self.m - self.n) / self.m
        return {"sparsity": zeros / total, "mask_flips": flips(model) / sum(sizes)}


def nm(model: nn.Module, n: int = 2, m: int = 4, decay: float = 2e-4, dense: tuple[str, ...] = ()) -> NM:
    """Train a model so that n of m weights count: change it in place, and return what has been done to it.

    Call it before the optimizer and the Synchronizer are made. Arguments and errors as of `NM`.
    """
    modifier = NM(n, m, decay, dense)
    modifier.prepare(model)
    return modifier


def masks(model: nn.Module) -> Iterator[NMMask]:
    """Yield the masks of a model's layers."""
    return (module for module in model.modules() if isinstance(module, NMMask))


def flips(model: nn.Module) -> int:
    """Return how many elements of the masks have changed so far, summed over the training steps.

    It is the sum of what the paper calls the sparse architecture divergence of consecutive steps.
    """
    return sum(int(mask.flips) for mask in masks(model))


def export(model: nn.Module, *, semi_structured: bool = False) -> nn.Module:
    """Return a copy of a model in which pruned weights are zero, and all layers plain modules.

    Args:
        model: with layers that `nm` has pruned; is not changed.
        semi_structured: let the 2:4 weights of its linear layers be torch's semi-structured sparse tensors.

    Raises:
        UsageError: `semi_structured` on a device that has none.
    """
    found = copy.deepcopy(model)
    layers = [layer for layer in found.modules() if parametrize.is_parametrized(layer, "weight")]
    for layer in cast(list[Any], layers):
        mask = layer.parametrizations.weight[0]
        if isinstance(mask, NMMask):
            weight = layer.weight.detach().clone()
            if semi_structured and isinstance(layer, nn.Linear) and (mask.n, mask.m) == (2, 4):
                weight = _compressed(weight)
            # Not remove_parametrizations: it changes the class, which is also that of the model's own layer.
            layer.__class__ = parametrize.type_before_parametrizations(layer)
            del layer.parametrizations
            layer.register_parameter("weight", nn.Parameter(weight))
    return found


def _compressed(weight: Tensor) -> Tensor:
    """Return a weight with 2:4 zeros as a semi-structured sparse tensor. Not tested: it needs such a GPU."""
    if weight.device.type != "cuda" or torch.cuda.get_device_capability(weight.device) < (8, 0):
        raise UsageError(
            f"export: semi_structured: expected a CUDA device of compute capability 8.0 or more, found "
            f"{weight.device}; move the model there first, or leave it out"
        )
    return torch.sparse.to_sparse_semi_structured(weight)


def check_ratio(name: str, n: int, m: int) -> None:
    """Raise UsageError unless 1 <= n <= m <= 255."""
    if not 1 <= n <= m <= 255:
        raise UsageError(f"{name}: expected 1 <= N <= M <= 255, found {n}:{m}")
