"""For code that can only swap its optimizer: each of its steps is a local step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from swarmstep.arguments import check_type
from swarmstep.errors import CheckpointError, UsageError
from swarmstep.runtime.number import scalar_loss
from swarmstep.runtime.synchronizer import Synchronizer
from swarmstep.signal import Event

KEY = "swarmstep"  # of the Synchronizer's state in the optimizer's state dict


class OptimizerHook:
    """Calls `Synchronizer.step` after each step of an optimizer, and saves and loads both together.

    Only torch's own hooks are used: the optimizer stays what it is, for schedulers, gradient scalers and whatever
    wraps it. Its `state_dict` holds the Synchronizer's, and its `load_state_dict` loads that; load the model's
    state before, as most code does. Each rank saves and loads its own. A step that a gradient scaler skips is no
    local step. Call `finish` at the end.

    Args:
        sync: of the model that is trained.
        *optimizers: one, or several of which each steps once in a local step; the last of them counts it and
            keeps the state. Their learning rates are those of the step.
        on_event: is called with each `Round`, and with each `MembershipChange` of an elastic group.

    Raises:
        UsageError: no optimizer, or none of torch; or a strategy for gradients, which would find them clipped.
    """

    def __init__(
        self, sync: Synchronizer, *optimizers: Optimizer, on_event: Callable[[Event], object] | None = None
    ) -> None:
        check_type("OptimizerHook: sync", sync, Synchronizer)
        bare = [_bare(optimizer) for optimizer in optimizers]
        if not bare:
            raise UsageError("OptimizerHook: expected at least one optimizer, found none")
        if sync.strategy.target == "gradients":
            raise UsageError(
                f"OptimizerHook: {type(sync.strategy).__name__} synchronizes gradients, which are clipped by the "
                "time the optimizer steps; use a strategy for weights, or call reduce and step in your own loop"
            )
        self.sync = sync
        self._optimizers, self._on_event = bare, on_event
        self._losses: list[Tensor | float] = []  # told since the last local step
        self._depth = 0  # of steps within steps: a subclass's calls that of its base
        last = bare[-1]
        last.register_step_pre_hook(self._before_step)
        last.register_step_post_hook(self._after_step)
        last.register_state_dict_post_hook(self._save)
        last.register_load_state_dict_pre_hook(self._load)

    def add_loss(self, loss: Tensor | float) -> None:
        """Tell the loss of the coming step, or of one of the batches whose gradients it accumulates.

        Only strategies that compare the workers' losses need it; the losses in a `Round` are +inf without it. What
        the closure of `optimizer.step(closure)` returns counts where nothing was told.

        Args:
            loss: a scalar, as divided for the accumulation: the step's is the sum.
        """
        self._losses.append(scalar_loss(loss))

    def finish(self) -> None:
        """Call `Synchronizer.finish`, which loads the result into the model."""
        self._tell(self.sync.finish())

    def _tell(self, events: list[Event]) -> None:
        for event in events:
            if self._on_event:
                self._on_event(event)

    def _before_step(
        self, _: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        self._depth += 1
        if self._depth > 1 or self._losses:
            return None
        # `args` begins with the optimizer, and all that an optimizer is called with is its closure.
        heard = [self._listening(value) if callable(value) else value for value in args[1:]]
        named = {name: self._listening(value) if callable(value) else value for name, value in kwargs.items()}
        return (*args[:1], *heard), named

    def _listening(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        """Return a closure that also tells its loss; the first call counts."""

        def heard() -> Any:
            loss = closure()
            if not self._losses and loss is not None:
                self.add_loss(loss)
            return loss

        return heard

    def _after_step(self, *_: Any) -> None:
        self._depth -= 1
        if self._depth:
            return
        losses, self._losses = self._losses, []
        event = self.sync.step(sum(losses) if losses else None, lr=self._optimizers)
        self._tell([event, *self.sync.events()] if event else [])

    def _save(self, _: Optimizer, state: dict[str, Any]) -> None:
        state[KEY] = self.sync.state_dict()

    def _load(self, _: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        if KEY not in state:
            raise CheckpointError(
                f"{KEY}: missing from the optimizer's state, which was saved without the swarm; start anew from "
                "the model's weights, loaded before the Synchronizer is made"
            )
        saved = state[KEY]
        if saved.get("step") != 0:  # of before the first step there is nothing to go on from
            self.sync.load_state_dict(saved)
        return {key: value for key, value in state.items() if key != KEY}


def _bare(optimizer: object) -> Optimizer:
    """Return torch's optimizer, out of the wrapper of Accelerate or Lightning where it is in one."""
    while type(optimizer).__name__ in ("AcceleratedOptimizer", "LightningOptimizer"):
        optimizer = getattr(optimizer, "optimizer")  # noqa: B009
    check_type("OptimizerHook: optimizer", optimizer, Optimizer)
    assert isinstance(optimizer, Optimizer)
    return optimizer
