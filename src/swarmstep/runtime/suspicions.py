"""What looks wrong without being an error: weights that nobody trains, and workers that all see the same data."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

from swarmstep.runtime.flat import Flat
from swarmstep.signal import Round

ROUNDS = 3  # in a row, before anything is said


class Suspicions:
    """Warns, once each, of what is legal but hardly meant.

    Args:
        flat: the model's vector, in one fragment; None where rounds in the background change the weights, too, so
            that they never stand still.
    """

    def __init__(self, flat: Flat | None) -> None:
        self._flat = flat
        self._after = -1, math.nan  # versions and norm of x when the last round had landed
        self._still, self._alike = 0, 0  # rounds in a row
        self._said_still, self._said_alike = False, False
        self._losses: tuple[float, ...] = ()

    def before(self, step: int, rank: int, mean_loss: Callable[[], float], lr: float | None) -> None:
        """Look at the weights before a round starts.

        Args:
            step: this worker's.
            rank: its.
            mean_loss: since the last round; a call waits for the device.
            lr: its learning rate, if it is known.
        """
        if self._flat is None:
            return
        loss = mean_loss()
        known = rank < len(self._losses) and loss != self._losses[rank]
        came = known and math.isfinite(loss) and lr != 0.0
        self._still = self._still + 1 if came and self._stands_still(self._flat) else 0
        if self._still == ROUNDS and not self._said_still:
            self._said_still = True
            warnings.warn(
                f"rank {rank}, step {step}: the weights have not changed for {ROUNDS} rounds, but losses came in; "
                "is the model that is trained the one that the Synchronizer was given?",
                stacklevel=2,
            )

    def _stands_still(self, flat: Flat) -> bool:
        versions, norm = self._after
        return flat.versions() == versions and float(flat.open()[: flat.layout.parameters].norm()) == norm

    def after(self, landed: Round, norm: float) -> None:
        """Look at what a round reports, and at the norm of the parameters that it leaves."""
        if self._flat is not None:
            self._after = self._flat.versions(), norm
        losses = landed.losses
        alike = len(losses) > 1 and len({*losses}) == 1 and math.isfinite(losses[0]) and losses != self._losses
        self._alike = self._alike + 1 if alike else 0
        self._losses = losses
        if self._alike == ROUNDS and not self._said_alike:
            self._said_alike = True
            warnings.warn(
                f"step {landed.step}: all {len(losses)} workers have reported equal losses for {ROUNDS} rounds; "
                "do all read the same data? Give each a shard of its own, and give step its own loss",
                stacklevel=2,
            )
