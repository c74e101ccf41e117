"""What one worker has done since its last round."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from swarmstep.checkpoint import fields
from swarmstep.errors import CheckpointError


class Window:
    """The local steps since the last round: their losses, their weights, and when they began.

    Args:
        device: where losses are summed, until one comes from elsewhere.
        began: seconds, by the group's clock.

    Attributes:
        steps: how many.
        weight: the sum of their weights: examples, tokens, or 1 a step.
        began: when the first one began, by the group's clock.
    """

    def __init__(self, device: torch.device, began: float) -> None:
        self._loss = torch.zeros((), device=device)
        self.steps = 0
        self.weight = 0.0
        self.began = began

    def note(self, loss: Tensor | float, weight: float) -> None:
        """Count a local step."""
        if isinstance(loss, Tensor):
            loss = loss.detach().view(())
            self._loss = self._loss.to(loss.device)  # where it may be summed without waiting for it
        self._loss += loss
        self.steps += 1
        self.weight += weight

    def mean_loss(self) -> float:
        """Return the mean loss of the steps, +inf if there are none; waits for the device."""
        return float(self._loss) / self.steps if self.steps else math.inf

    def next(self, began: float) -> Window:
        """Return an empty window for the steps that follow."""
        return Window(self._loss.device, began)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"loss": self._loss.clone(), "steps": self.steps, "weight": self.weight}

    def checked(self, saved: Mapping[str, Any]) -> Window:
        """Return the window that `saved` describes.

        Raises:
            CheckpointError: names the field that does not fit.
        """
        loss, steps, weight = (fields.field(saved, name) for name in ("loss", "steps", "weight"))
        fields.pairs("window", {"loss": self._loss}, {"loss": loss})
        if type(steps) is not int or steps < 0 or type(weight) is not float or not 0.0 <= weight < math.inf:
            raise CheckpointError(f"window: expected steps >= 0 and a weight >= 0, found {steps!r} and {weight!r}")
        window = self.next(self.began)
        window._loss, window.steps, window.weight = loss.to(self._loss), steps, weight
        return window
