"""Generalized primal averaging: one worker whose weights are a running mean of its optimizer's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from swarmstep.errors import UsageError
from swarmstep.objectives.inner import Inner, Wrapper

HORIZON = 30  # steps between outer steps that the default mixing stands for


class PrimalAveraging(Wrapper):
    """Any optimizer, for one worker: gradients are taken, and the model is tested, at means of its weights (GPA).

    ::

        y = my x + (1 - my) z        where the gradient is taken: the model's parameters while it trains
        z = z - step(gradient at y)  by the optimizer
        x = mx x + (1 - mx) z        the model that is tested and kept: after `eval()`

    Use it in the place of the optimizer. Call `eval()` before the model is evaluated or saved, and `train()`
    before the next step, as with schedule-free optimizers. With mx = my = 0 it is the optimizer. It is for one
    worker: a round would average y and know nothing of x and z, so weights that something else has changed are an
    error.

    Args:
        optimizer: of torch, already made.
        mx: of x, 0 to below 1; 0.9^(1/H) stands for outer steps each H steps (H = 30 by default).
        my: of y, 0 to 1.

    Raises:
        UsageError: a value is out of its range; a step in evaluation; weights were changed since the last step.

    Cost: no traffic; two vectors of the size of the parameters, z, and x in float32 at least.

    Source: generalized primal averaging, arXiv 2512.17131, from a summary and its authors' public code: the three
    lines, my = 0.7 and mx. Keeping both x and z is ours; one of them and y would do.
    """

    def __init__(self, optimizer: Inner, mx: float = 0.9 ** (1 / HORIZON), my: float = 0.7) -> None:
        if not (0.0 <= mx < 1.0 and 0.0 <= my <= 1.0):
            raise UsageError(f"PrimalAveraging: expected mx from 0 to below 1 and my 0 to 1, found {mx} and {my}")
        super().__init__(optimizer)
        self.mx, self.my, self.training = mx, my, True
        self._parameters: list[Tensor] = [p for group in self.param_groups for p in group["params"]]
        # In bfloat16 a share of 1 - mx of a difference would mostly be rounded away, and x would stand still.
        self._x = [p.detach().to(torch.promote_types(p.dtype, torch.float32), copy=True) for p in self._parameters]
        self._z = [p.detach().clone() for p in self._parameters]
        self._versions = [p._version for p in self._parameters]

    @torch.no_grad()
    def step(self) -> None:
        """Take a step of the optimizer from z with the gradients at y."""
        if not self.training:
            raise UsageError("PrimalAveraging.step: the model holds x; call train() before the next step")
        self._check()
        for parameter, z in zip(self._parameters, self._z, strict=True):
            parameter.copy_(z)
        self.optimizer.step()
        for parameter, x, z in zip(self._parameters, self._x, self._z, strict=True):
            z.copy_(parameter)
            x.mul_(self.mx).add_(z, alpha=1 - self.mx)
        self._show()

    def train(self) -> None:
        """Let the model's parameters be y, where gradients are taken."""
        self._switch(training=True)

    def eval(self) -> None:
        """Let the model's parameters be x, which is the result."""
        self._switch(training=False)

    def _switch(self, *, training: bool) -> None:
        self._check()
        self.training = training
        self._show()

    def _check(self) -> None:
        if [p._version for p in self._parameters] != self._versions:
            raise UsageError(
                "PrimalAveraging: the weights were changed since the last step, by a round or by loading; it is "
                "for one worker. After loading a model, load this state too, or make a new one"
            )

    @torch.no_grad()
    def _show(self) -> None:
        for parameter, x, z in zip(self._parameters, self._x, self._z, strict=True):
            parameter.copy_(self.my * x + (1 - self.my) * z if self.training else x)
        self._versions = [p._version for p in self._parameters]

    def state_dict(self) -> dict[str, Any]:
        """Return what there is to save, beside the model."""
        vectors = {"x": self._x, "z": self._z}
        return {
            "optimizer": self.optimizer.state_dict(),
            "training": self.training,
            **{name: [tensor.clone() for tensor in tensors] for name, tensors in vectors.items()},
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on from a `state_dict`, parameters included; ValueError or RuntimeError where it does not fit."""
        for name, tensors in (("x", self._x), ("z", self._z)):
            for tensor, value in zip(tensors, saved[name], strict=True):
                tensor.copy_(value)
        self.optimizer.load_state_dict(saved["optimizer"])
        self.training = saved["training"]
        self._show()
