"""What a worker has done since its last round."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from swarmstep.checkpoint import fields
from swarmstep.errors import CheckpointError


class Window:
    """The local steps since the last round: their number, loss, weight, and the seconds they took.

    Args:
        device: where losses are summed at first.

    Attributes:
        loss: the sum of the steps' losses, a scalar; on the device of the losses, so that no step waits for it.
        steps: their number.
        weight: the sum of their weights, such as examples or tokens.
        seconds: spent outside of the Synchronizer, by the group's clock.
    """

    def __init__(self, device: torch.device) -> None:
        self.loss = torch.zeros((), device=device)
        self.steps = 0
        self.weight = 0.0
        self.seconds = 0.0

    def add(self, loss: Tensor | float, weight: float, seconds: float) -> None:
        """Count a local step."""
        if isinstance(loss, Tensor):
            loss = loss.detach().view(())
            self.loss = self.loss.to(loss.device)
        self.loss += loss
        self.steps += 1
        self.weight += weight
        self.seconds += seconds

    def mean_loss(self) -> float:
        """Return the mean of the steps' losses, +inf if there are none; waits for the device."""
        return float(self.loss) / self.steps if self.steps else math.inf

    def fresh(self) -> Window:
        """Return an empty window on the same device."""
        return Window(self.loss.device)

    def load(self, saved: Mapping[str, Any]) -> Window:
        """Return the window that a `state_dict` describes.

        Raises:
            CheckpointError: names the field that does not fit.
        """
        loss, steps, weight = (fields.field(saved, name) for name in ("loss", "steps", "weight"))
        fields.pairs("window", {"loss": self.loss}, {"loss": loss})
        if type(steps) is not int or steps < 0 or type(weight) is not float or not 0.0 <= weight < math.inf:
            raise CheckpointError(f"window: expected steps >= 0 and a weight >= 0, found {steps!r} and {weight!r}")
        window = self.fresh()
        window.loss, window.steps, window.weight = loss.clone().to(self.loss), steps, weight
        window.seconds = saved.get("seconds", 0.0)  # older checkpoints have none
        return window

    def state_dict(self) -> dict[str, Any]:
        """Return numbers and tensors."""
        return {"loss": self.loss.clone(), "steps": self.steps, "weight": self.weight, "seconds": self.seconds}
