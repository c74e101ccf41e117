"""An exponential moving average of the synchronized weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from swarmstep.arguments import check_type
from swarmstep.checkpoint import fields
from swarmstep.errors import UsageError
from swarmstep.runtime.as_finished import kept
from swarmstep.runtime.flat import Flat
from swarmstep.runtime.synchronizer import Synchronizer
from swarmstep.signal import Event, Round

T = TypeVar("T")


class EMA:
    """Averages the model over the rounds: after each, average = decay average + (1 - decay) x.

    x are this worker's weights and running statistics as the round leaves them, in float32 (float64 where the
    model has such parameters); the first round sets the average to x. Of a fragment's round it is the fragment's
    part. The result is the mean of the workers' averages, and so the average of their means; no round sends more.
    In float32 each worker's is bit for bit what ``torch.optim.swa_utils.AveragedModel(model,
    multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)`` has, updated after the same rounds. ::

        ema = EMA(sync, decay=0.99)
        ...
        ema.update(sync.step(loss))
        ...
        sync.save(folder, model, optimizer, ema)
        ema.evaluate(score)

    Args:
        sync: of the model. Newcomers of an elastic group take the average of another worker.
        decay: at least 0 and below 1.

    Raises:
        UsageError: an argument is out of its range.
    """

    def __init__(self, sync: Synchronizer, decay: float = 0.99) -> None:
        check_type("EMA: sync", sync, Synchronizer)
        check_type("EMA: decay", decay, float)
        if not 0.0 <= decay < 1.0:
            raise UsageError(f"EMA: expected a decay of at least 0 and below 1, found {decay}")
        self._sync, self._decay = sync, decay
        self._flat = Flat(sync.model, fragments=sync.options.fragments, device=sync.options.offload)
        self._averages = [self._flat.read(index) for index in range(sync.options.fragments)]
        self._updates = [0] * sync.options.fragments
        sync.attach("ema", self)

    def update(self, event: Event | None) -> None:
        """Take note of what `Synchronizer.step` or `events` returned; a `Round` moves the average.

        Where rounds of several fragments land in one step, `step` returns the first: hand over those of `events`,
        too, before the next step moves the weights.
        """
        if isinstance(event, Round):
            x, average = self._flat.read(event.fragment), self._averages[event.fragment]
            average.lerp_(x, 1.0 - self._decay if self._updates[event.fragment] else 1.0)
            self._updates[event.fragment] += 1

    def evaluate(self, function: Callable[[nn.Module], T]) -> T:
        """Return what a function returns of the model with the averages, as `Synchronizer.evaluate` does.

        Every rank calls it, with all others; in an elastic group nobody waits, and the average is this worker's.
        """
        with kept(self._sync.model):
            self.apply()
            return function(self._sync.model)

    def apply(self) -> None:
        """Set the model to the average, for good: after `Synchronizer.finish`. Every rank calls it."""
        self._flat.write(torch.cat([self._result(average) for average in self._averages]))

    def _result(self, average: Tensor) -> Tensor:
        comm = self._sync.comm
        return average if comm.elastic else comm.mean(average, float(average.isfinite().all()))[0]

    def state_dict(self) -> dict[str, Any]:
        """Return numbers and tensors."""
        averages = [average.clone() for average in self._averages]
        return {"decay": self._decay, "averages": averages, "updates": [*self._updates]}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`; CheckpointError where it is of another decay or model."""
        fields.same("EMA: decay", self._decay, fields.field(saved, "decay"))
        own, theirs = (
            {str(i): part for i, part in enumerate(parts)}
            for parts in (self._averages, fields.field(saved, "averages"))
        )
        for average, value in fields.pairs("EMA: averages", own, theirs):
            average.copy_(value)
        self._updates = [int(count) for count in fields.field(saved, "updates")]
