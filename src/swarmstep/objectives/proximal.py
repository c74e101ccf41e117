"""Proximal stages: each is a strongly convex problem around what the last one found."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from swarmstep.errors import UsageError
from swarmstep.objectives.inner import Inner, Wrapper

GROWTH = 3  # a stage is so many times as long as the last one, at a learning rate that is as much lower


def stage_of(step: int, first: int) -> int:
    """Return the stage, from 0, of a 1-based step where the first stage has `first` steps: T_s = first 3^s."""
    stage, end = 0, first
    while step > end:
        stage += 1
        end += first * GROWTH**stage
    return stage


class ProximalStages(Wrapper):
    """Any optimizer, whose parameters are pulled to a reference that moves from stage to stage.

    ::

        g = gradient + (v - v_ref) / gamma               at each step
        v_ref = mean of v after the steps of the stage   at its end; at first v as it was when this was made

    Use it in the place of the optimizer. Stage s has first 3^s steps; lower the learning rate by the same factor,
    with ``LambdaLR(optimizer, lambda done: 3.0 ** -stage_of(done + 1, first))``, say (`swarmstep train --proximal`
    does). The reference is this worker's own: with plain SGD the mean of the workers' pulls is the pull to the
    mean of their references.

    Args:
        optimizer: of torch, already made.
        gamma: of the pull, above 0; the larger, the weaker.
        first: steps of the first stage, at least 1.
        without: parameters that are not pulled, such as the dual of a min-max problem.

    Raises:
        UsageError: a value is out of its range.

    Cost: no traffic; two vectors of the size of the parameters.

    Source: the stages of Guo et al., arXiv 2005.02426 (CODA), which we know second hand: the form of the pull, the
    factor 3 and the mean as the next reference. That the reference stays each worker's own is ours. CODA sets the
    dual anew after a stage: `AUCMinMax.settle`.
    """

    def __init__(
        self,
        optimizer: Inner,
        gamma: float = 500.0,
        first: int = 4000,
        without: Iterable[nn.Parameter] = (),
    ) -> None:
        if not gamma > 0.0 or first < 1:
            raise UsageError(
                f"ProximalStages: expected gamma above 0 and first of at least 1, found {gamma}, {first}"
            )
        super().__init__(optimizer)
        self.gamma, self.first = gamma, first
        left_out = {id(parameter) for parameter in without}
        parameters: list[Tensor] = [p for group in self.param_groups for p in group["params"]]
        self._pulled = [p for p in parameters if id(p) not in left_out]
        self._steps, self._since = 0, 0  # of all, and of this stage
        self._references = [p.detach().clone() for p in self._pulled]
        self._means = [torch.zeros_like(p) for p in self._pulled]

    @torch.no_grad()
    def step(self) -> None:
        """Take a step of the optimizer with the pull in the gradients."""
        for parameter, reference in zip(self._pulled, self._references, strict=True):
            if parameter.grad is not None:
                parameter.grad.add_(parameter - reference, alpha=1 / self.gamma)
        self.optimizer.step()
        self._steps, self._since = self._steps + 1, self._since + 1
        for parameter, mean in zip(self._pulled, self._means, strict=True):
            mean.add_(parameter - mean, alpha=1 / self._since)
        if stage_of(self._steps + 1, self.first) > stage_of(self._steps, self.first):
            for reference, mean in zip(self._references, self._means, strict=True):
                reference.copy_(mean)
                mean.zero_()
            self._since = 0

    def state_dict(self) -> dict[str, Any]:
        """Return what there is to save."""
        vectors = {"references": self._references, "means": self._means}
        return {
            "optimizer": self.optimizer.state_dict(),
            "steps": [self._steps, self._since],
            **{name: [tensor.clone() for tensor in tensors] for name, tensors in vectors.items()},
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on from a `state_dict`; ValueError or RuntimeError where it does not fit."""
        for name, tensors in (("references", self._references), ("means", self._means)):
            for tensor, value in zip(tensors, saved[name], strict=True):
                tensor.copy_(value)
        self.optimizer.load_state_dict(saved["optimizer"])
        self._steps, self._since = saved["steps"]
