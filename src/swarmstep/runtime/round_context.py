"""What the rounds of a Synchronizer have in common, and what a step knows."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from swarmstep.comm.base import Comm
from swarmstep.comm.metered import Metered
from swarmstep.runtime.flat import Flat
from swarmstep.runtime.gradients import Gradients
from swarmstep.runtime.optimizer_state import OptimizerStates
from swarmstep.runtime.options import Options
from swarmstep.runtime.probe import Probe
from swarmstep.runtime.window import Window
from swarmstep.signal import Layout, Signal
from swarmstep.strategies.base import Strategy


@dataclasses.dataclass(frozen=True)
class RoundContext:
    """What all fragments of a Synchronizer have in common in one group.

    `vector` is what the rounds change: x itself, or the gradients. `comm` carries the rounds, over connections of
    its own if they run in the background. The roll is called there, and within the `island`; on `roll_comm`
    instead, if there is one, where it is called at every step. `shards` is the island as the rounds use it.
    `inner` averages the optimizers' states.
    """

    strategy: Strategy
    options: Options
    buffers: str
    flat: Flat
    vector: Flat | Gradients
    comm: Metered
    roll_comm: Metered | None
    island: Comm | None
    shards: Comm | None
    probe: Probe | None
    inner: OptimizerStates

    def total(self, part: Tensor) -> Tensor:
        """Return the sum of `part` over the ranks that hold shards of this worker's model. Collective there."""
        return self.shards.gather(part).sum(dim=0) if self.shards else part

    def signal(self, fragment: int, layout: Layout, step: int, lr: float | None, window: Window) -> Signal:
        """Return what a trigger and a strategy are told.

        Args:
            fragment: which one.
            layout: of the vector that its rounds change.
            step: local steps of the worker, or of the round.
            lr: of the inner optimizer.
            window: the steps since the last round.
        """
        probe = self.probe if self.options.fragments == 1 else None
        return Signal(
            step=step,
            seed=self.options.seed,
            lr=lr,
            loss=window.mean_loss,
            gradient=lambda: self.flat.gradient()[: self.flat.layout.parameters],
            probe=functools.partial(probe, step=step) if probe else None,
            layout=layout,
            probe_cost=probe.cost(self.options.probe_cost, window) if probe else 0.0,
            rank=self.comm.rank,
            seconds=window.seconds,
            total=self.total,
            weights=functools.partial(self.flat.open, fragment),
        )


class StepContext(NamedTuple):
    """Where a worker is when a round may start.

    `step` counts its local steps; `lr` is the inner optimizer's learning rate, and `rates` that of each parameter
    by name where they differ; `requested` says whether its trigger asks for a round, and `finished` whether it has
    taken its last step.
    """

    step: int
    lr: float | None
    requested: bool
    finished: bool = False
    rates: Mapping[str, float] = {}
