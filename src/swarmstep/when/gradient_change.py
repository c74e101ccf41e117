"""SelSync's trigger: a round when gradients change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from torch import Tensor

from swarmstep.errors import UsageError
from swarmstep.ownership import Derived, Inherited, Shared
from swarmstep.signal import Layout, Signal
from swarmstep.when.base import When


class GradientChangeState(NamedTuple):
    """Two windows of recent values, newest last."""

    norms: Inherited  # float64 [window]: sums over the parameter tensors of the gradient's norm
    changes: Inherited  # float64 [window]: relative changes of their weighted mean
    seen: Shared  # int64 []: steps so far
    weights: Derived  # float64 [window]: (1 - smoothing) ** age, normalized to sum 1


@final
@dataclass(frozen=True)
class GradientChange(When[GradientChangeState]):
    """A round when some worker's gradient changes much: the trigger of SelSync.

    ::

        g_t      = sum over the parameter tensors of the gradient's L2 norm
        G_t      = mean of the last `window` g, weighted with (1 - smoothing) ** age
        change_t = |G_t - G_{t-1}| / G_{t-1}
        D_t      = mean of the last `window` changes, weighted likewise
        wish     = D_t >= threshold, or D_t is not finite, or t < 2 window

    One worker's wish makes all synchronize. SelSync is local SGD with this trigger. Each step waits for the
    device, builds the flat gradient, and calls the roll.

    Args:
        threshold: at least 0; with 0 every step synchronizes.
        window: how many values are averaged, at least 1.
        smoothing: 0 to 1; None means W/100, at most 1.

    Raises:
        UsageError: an argument is out of its range.

    Source: Tyagi and Swany, Accelerating Distributed ML Training via Selective Synchronization (SelSync), arXiv
    2307.07950, and its authors' code. There G and D are 0 until their windows are full, and the first steps
    synchronize for `window` steps; here until both windows hold values from full windows, since the second
    step of that code divides 0 by 0. Its authors average the weights and then apply the gradient, which is
    still local; here the optimizer's step comes first, so that the replicas agree after a round. The default
    of the smoothing is from memory. The order of the data (SelDP) is the trainer's: `--shards seldp`.
    """

    threshold: float = 0.3
    window: int = 25
    smoothing: float | None = None

    def __post_init__(self) -> None:
        if not self.threshold >= 0:
            raise UsageError(f"GradientChange: expected threshold >= 0, found {self.threshold}")
        if self.window < 1:
            raise UsageError(f"GradientChange: expected window >= 1, found {self.window}")
        if self.smoothing is not None and not 0 <= self.smoothing <= 1:
            raise UsageError(f"GradientChange: expected smoothing 0 to 1, found {self.smoothing}")

    @property
    def voting(self) -> bool:
        return True

    def init(self, layout: Layout, size: int) -> GradientChangeState:
        smoothing = min(1.0, size / 100) if self.smoothing is None else self.smoothing
        weights = (1.0 - smoothing) ** torch.arange(self.window - 1, -1, -1, dtype=torch.float64)
        return GradientChangeState(
            norms=torch.zeros(self.window, dtype=torch.float64),
            changes=torch.zeros(self.window, dtype=torch.float64),
            seen=torch.tensor(0),
            weights=weights / weights.sum(),
        )

    def due(self, state: GradientChangeState, signal: Signal) -> bool:
        pieces = signal.gradient().split(signal.layout.parameter_sizes)
        before = state.weights.dot(state.norms)
        _push(state.norms, torch.stack([piece.norm() for piece in pieces]).sum())
        state.seen.add_(1)
        _push(state.changes, (state.weights.dot(state.norms) - before).abs() / before)
        if state.seen < 2 * self.window:
            return True
        return not bool(state.weights.dot(state.changes) < self.threshold)


def _push(window: Tensor, value: Tensor) -> None:
    """Drop the oldest value of a window and add one, in place."""
    window.copy_(window.roll(-1))
    window[-1] = value
