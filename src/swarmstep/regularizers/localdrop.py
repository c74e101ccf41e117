"""Dropout with a keep rate for each unit, learned together with weights of few large singular values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from swarmstep.errors import UsageError
from swarmstep.modifier import Modifier, hooked, layers_of, unhooked
from swarmstep.regularizers.spectrum import shrink_tail, tail_by_column

RANK = 0.01  # a singular value counts for the rank if it is more than this part of the largest


@final
@dataclass(frozen=True)
class LocalDrop(Modifier):
    """Keep rates and weights by turns, from the tail of singular values; in the spirit of LocalDrop.

    ::

        J(W, theta) = loss + lam sum over layers of the tail of A = W diag(theta)
        the tail: the sum of all singular values but the `head` largest

    theta has a keep rate for each input of a linear layer and each input channel of a convolution, all layers but
    the first. In training an input counts with probability theta (in blocks, DropBlock, in convolutions), in
    evaluation theta times: A is the mean network. The optimizer steps W and theta by the gradient of the loss;
    that of theta passes through the draw as if it were theta. Each `every` steps, with t = lam lr every:

        1. theta <- theta - t d tail / d theta, then into [least, 1], W fixed
        2. W diag(theta) <- its singular values behind the head less t, at least 0, theta fixed

    It is done after the step's round, since a mean of matrices with short tails has a longer one. Keep rates are
    parameters of the model: rounds average them like weights, and the optimizer's weight decay counts for them.

    Layers: linear and convolution layers with trained weights of their own.

    Args:
        lam: lambda, at least 0.
        head: how many singular values of a layer are left alone, at least 0; the number of classes, say.
        keep: the first keep rates, `least` to 1.
        least: below which no keep rate falls, above 0 and at most 1. With keep = least they stay.
        every: steps between two turns.
        block: width of the blocks that are dropped in convolutions.

    Raises:
        UsageError: a number is out of its range.

    Cost: two singular value decompositions of each layer at each turn, a few numbers for each unit on the wire.
    Workers that synchronize gradients do them alike only on like machines.

    Source: Lu et al., TPAMI, arXiv 2103.00719, of which we could read the abstract only: a bound of the local
    Rademacher complexity, keep rates and weights by turns, DropBlock for convolutions. All formulas are ours, and
    so are the defaults.
    """

    acts_on_steps: ClassVar[bool] = True
    lam: float = 1e-3
    head: int = 10
    keep: float = 0.8
    least: float = 0.5
    every: int = 50
    block: int = 1

    def __post_init__(self) -> None:
        if not 0.0 <= self.lam < math.inf:
            raise UsageError(f"LocalDrop: lam: expected a number of at least 0, found {self.lam}")
        if not 0.0 < self.least <= self.keep <= 1.0:
            raise UsageError(f"LocalDrop: expected 0 < least <= keep <= 1, found {self.least} and {self.keep}")
        for name, low in (("head", 0), ("every", 1), ("block", 1)):
            if getattr(self, name) < low:
                raise UsageError(f"LocalDrop: {name}: expected at least {low}, found {getattr(self, name)}")

    def prepare(self, model: nn.Module) -> None:
        """Give all layers but the first keep rates; not convolutions in groups, as each sees a part of the inputs.

        Raises:
            UsageError: there is no layer.
        """
        for layer in [*layers_of(model, "LocalDrop").values()][1:]:
            weight = layer.weight
            if getattr(layer, "groups", 1) > 1:
                continue
            layer.register_parameter("keep_rates", nn.Parameter(weight.new_full((weight.shape[1],), self.keep)))
            cast(Any, layer).drop_block = self.block
            hooked(layer, _drop)

    @torch.no_grad()
    def after_step(self, model: nn.Module, lr: float, step: int) -> None:
        for layer in layers_of(model, "LocalDrop").values():
            rates = _rates(layer)
            if rates is not None:
                rates.clamp_(self.least, 1.0)
            if self.lam and step % self.every == 0:
                self._take_turns(layer.weight, rates, self.lam * lr * self.every)

    def _take_turns(self, weight: Tensor, rates: Tensor | None, t: float) -> None:
        """Let the keep rates, and then the weight [out, in, ...], take their steps of size t."""
        matrix = weight.reshape(len(weight), -1)
        if rates is not None:
            gradient = tail_by_column(matrix, _each(rates, matrix), self.head)
            rates.sub_(t * gradient.view(len(rates), -1).sum(1)).clamp_(self.least, 1.0)
        scale = _each(rates, matrix)
        weight.copy_((shrink_tail(matrix * scale, self.head, t) / scale).view_as(weight))

    def finished(self, model: nn.Module) -> nn.Module:
        """Return the mean network: a copy with weights W diag(theta), and no keep rates."""
        found = unhooked(model)
        for layer in found.modules():
            rates = _rates(layer)
            if rates is not None:
                weight = cast(Tensor, layer.weight).data
                kept = rates.detach().clamp(self.least, 1.0)  # a round may have landed after the last step
                weight *= kept.view(-1, *[1] * (weight.ndim - 2))
                del layer.keep_rates
        return found

    @torch.no_grad()
    def metrics(self, model: nn.Module) -> Mapping[str, float]:
        """Return the mean keep rate, and the layers' mean rank: singular values above 0.01 of the largest."""
        kept, ranks = list[Tensor](), list[float]()
        for layer in layers_of(model, "LocalDrop").values():
            matrix, rates = layer.weight.reshape(len(layer.weight), -1), _rates(layer)
            values = torch.linalg.svdvals(matrix * _each(rates, matrix))
            ranks.append(float((values > RANK * values[0]).sum()))
            kept += [rates] if rates is not None else []
        mean = float(torch.cat(kept).mean()) if kept else 1.0
        return {"keep_rate": mean, "rank": sum(ranks) / len(ranks)}


def _rates(layer: nn.Module) -> nn.Parameter | None:
    """Return the keep rates of a layer's inputs, if it has some."""
    return dict(layer.named_parameters(recurse=False)).get("keep_rates")


def _each(rates: Tensor | None, matrix: Tensor) -> Tensor:
    """Return the keep rate [d] of each column of a layer's matrix; 1 where it has none."""
    if rates is None:
        return matrix.new_ones(matrix.shape[1])
    return rates.detach().repeat_interleave(matrix.shape[1] // len(rates))


def _drop(layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Multiply a layer's input by its keep rates, or in training by a draw that has them as its mean."""
    x: Tensor = inputs[0]
    kernel = cast(Tensor, layer.weight).ndim - 2
    rates = cast(Tensor, layer.keep_rates).view(-1, *[1] * kernel)
    if layer.training:
        drawn = _drawn(x, rates.detach(), kernel, cast(Any, layer).drop_block)
        rates = drawn + (rates - rates.detach())  # the draw, exactly, with the gradient of the rates
    return x * rates, *inputs[1:]


def _drawn(x: Tensor, rates: Tensor, kernel: int, block: int) -> Tensor:
    """Return zeros and ones like x, whose chance to be one is `rates`; zeros in blocks over the last dimensions.

    Blocks begin at places that are drawn, also beyond the edge, so that each element lies in as many possible
    blocks: with a chance of 1 - rates^(1 / block^kernel) for each, it is in none with the chance `rates`.
    """
    if kernel == 0 or block == 1:
        return (torch.rand(x.shape, device=x.device) < rates).to(x.dtype)
    shape = [*x.shape[:-kernel], *(size + block - 1 for size in x.shape[-kernel:])]
    starts = (torch.rand(shape, device=x.device) >= rates ** (1 / block**kernel)).float()
    pool = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)[kernel - 1]
    return (1.0 - pool(starts, block, stride=1)).to(x.dtype)
