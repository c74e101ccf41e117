"""How good any flat vector is, without a trace on the model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator

import torch
from torch import Tensor, nn

from swarmstep.errors import UsageError
from swarmstep.runtime.flat import Flat
from swarmstep.runtime.model_copy import ModelCopy
from swarmstep.runtime.number import number
from swarmstep.runtime.window import Window


class Probe:
    """The losses of any flat vector on the probe batch, measured on a private copy of the module.

    They come as a tensor [n] float64 on the CPU, one for each example of the batch; [1] where the user's function
    gives only their mean.

    Args:
        model: is copied.
        loss: loss(module, step), one real number or a tensor [n] of the examples' losses, n >= 1.
        clock: for its cost.
        guarded: keep what the loss draws from torch's global generator apart from the training. Not possible
            beside the training.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[nn.Module, int], Tensor | float],
        clock: Callable[[], float],
        *,
        guarded: bool = True,
    ) -> None:
        self._copy = ModelCopy(model)
        self._flat = Flat(self._copy.module)
        self._loss = loss
        self._clock = clock
        self._guarded = guarded
        self.last = 0.0  # seconds of the last call
        self.last_loss = 0.0  # the mean
        self.seconds = 0.0  # of all calls

    def follow(self) -> None:
        """Measure the model as it is now, in all but the vector; to be called where no training goes on beside."""
        self._copy.follow()

    @torch.no_grad()
    def __call__(self, x: Tensor, step: int) -> Tensor:
        started = self._clock()
        self._flat.write(x)
        devices = [x.device] if x.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices, enabled=self._guarded), _uncached_autocast():
            given = self._loss(self._copy.module, step)
        losses = _losses(given)
        self.last = self._clock() - started
        self.seconds += self.last
        self.last_loss = float(losses.mean())
        return losses

    def cost(self, given: float | None, window: Window) -> float:
        """Return the cost of a call in local steps: as given, else measured over those of the window."""
        if given is not None or not window.steps:
            return given or 0.0
        return self.last / max(1e-9, window.seconds / window.steps)


def _losses(given: Tensor | float) -> Tensor:
    """Return what the user's function gave as a tensor [n] float64 on the CPU; UsageError if it is none."""
    if isinstance(given, Tensor) and given.ndim == 1 and len(given) and not given.is_complex():
        return given.detach().cpu().double()
    loss = number(given)
    if loss is None:
        raise UsageError(
            "probe: expected one real number or a tensor [n] of the losses of n examples, found "
            f"{_described(given)}"
        )
    return torch.tensor([loss], dtype=torch.float64)


@contextlib.contextmanager
def _uncached_autocast() -> Generator[None]:
    """Let a `torch.autocast` around the probe cast its weights anew; the cache would not see them change."""
    cached = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(cached)


def _described(value: object) -> str:
    return (
        f"a tensor of shape {list(value.shape)}, {value.dtype}" if isinstance(value, Tensor) else repr(value)[:80]
    )
