"""The one stateful object: counts steps, runs the rounds, saves and loads."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TypeVar

from torch import Tensor, nn
from typing_extensions import Self

from swarmstep.arguments import check_type
from swarmstep.comm.group import Group
from swarmstep.errors import CommError, UsageError
from swarmstep.runtime.learning_rate import LearningRate, Rate, learning_rate
from swarmstep.runtime.number import scalar_loss
from swarmstep.runtime.options import Options
from swarmstep.runtime.replica import Replica
from swarmstep.runtime.saved_synchronizer import SavedSynchronizer
from swarmstep.runtime.startup_checks import check_elastic
from swarmstep.signal import Event
from swarmstep.strategies.base import Strategy

T = TypeVar("T")


class Synchronizer(SavedSynchronizer):
    """Synchronizes a model with those of the other workers, seldom.

    Call `step(loss)` after each `optimizer.step()` and before `zero_grad()`, and `finish()` at the end; with a
    strategy for gradients (`Synchronous`), also `reduce()` between `backward()` and `optimizer.step()`. As a
    context manager it calls `finish` at the end of the block, unless an error ends it, when it communicates no
    more. Made at the same point on all ranks: they compare their configuration and take rank 0's weights and
    buffers. Load pretrained weights before that. To go on from a checkpoint, call `load`, or with files of your
    own the model's `load_state_dict` and then this one's. If the program ends, or this is collected, after steps
    that neither `finish` nor a checkpoint has, there is a warning.

    In an elastic group a worker may change groups in any call; it then finds a `MembershipChange` among the
    events. One that joins others may find some right after it was made: call `events()`.

    Args:
        model: any module; its parameters are changed in place.
        strategy: how a round changes the weights, and when.
        comm: this worker's view of the group.
        options: see `Options`.

    Raises:
        Disagreement: the ranks differ in strategy, hyper-parameters, shapes or the probe's loss.
        UsageError: the model has nothing to train, or the options do not go with it, or with the strategy.
    """

    def __init__(self, model: nn.Module, strategy: Strategy, comm: Group, options: Options | None = None) -> None:
        _check_arguments(model, strategy, comm, options)
        if comm.elastic:
            check_elastic(strategy, options or Options())
        super().__init__(Replica(model, strategy, options or Options()), comm)
        self._finished = False
        self._returned = self._clock()  # when the last call of `step` or `reduce` ended

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._unfinished.steps = 0
        if kind is None:
            self._finish()

    def until(self, steps: int) -> Iterator[int]:
        """Yield how many local steps have been taken, before each step until there are so many.

        Starts where a checkpoint, or in an elastic group the others are, and ends early where a round has decided
        that the run stops (`Decision`). The body of the loop calls `step`.
        """
        while self.steps < steps and not self._rounds.over:
            yield self.steps

    def step(
        self,
        loss: Tensor | float | None = None,
        lr: Rate | None = None,
        weight: float = 1.0,
        seconds: float | None = None,
    ) -> Event | None:
        """Count a local step; land the round that is due to land, and start the one that is due to start.

        Args:
            loss: this step's training loss, a scalar; its graph is not kept. None: it counts as +inf, and a
                strategy that compares losses refuses it.
            lr: the inner optimizer's learning rate, for methods that scale with it; or the optimizer itself, whose
                parameter groups may have different rates, or a list of all the optimizers.
            weight: of this step, at least 0, in a unit that all workers share: the examples or tokens of its
                batch, say. In a round a worker counts by the sum since its last one.
            seconds: that this step has computed since the last call of `step` or `reduce` (None: all the time
                since, evaluations included).

        Returns:
            The next event that was not returned yet: the `Round` that landed, or in an elastic group a
            `MembershipChange`; None if nothing happened. `events` returns the others. Without a delay a round
            lands in the step it starts in.

        Raises:
            NotFinite: a worker's weights are not finite and the strategy cannot contain it (on all ranks).
            CommError: the group cannot go on; the weights are those before the round.
            UsageError: `finish` was called before, an argument is out of its range, the strategy needs a loss, or
                at the first step: weights were loaded since this was made, or the model was wrapped.
        """
        self._check_call("step", weight)
        loss = self._scalar(loss)
        gradients = self.strategy.target == "gradients"
        if gradients and self._reduced != weight:
            raise UsageError(
                f"Synchronizer.step: {type(self.strategy).__name__} synchronizes gradients; call "
                "reduce(lr, weight) between backward() and optimizer.step(), with the same weight as step"
            )
        self._begin()
        rate = learning_rate(lr, self._replica.model, "Synchronizer.step")
        spent, self._reduced = self._clock() - self._returned if seconds is None else seconds, None
        rounds, self._unfinished.steps = self._rounds, 0  # if it fails, there is an error instead of a warning
        rounds.count_step()
        for fragment in rounds.group.fragments:
            fragment.window.add(loss, 0.0 if gradients else weight, spent)
        if not gradients:
            self._run(rate)
        self._returned, self._unfinished.steps = self._clock(), self.steps
        return rounds.events.pop(0) if rounds.events else None

    def reduce(self, lr: Rate | None = None, weight: float = 1.0) -> None:
        """Let a round change the gradients, where the strategy synchronizes gradients and one is due.

        Call it between `backward()` and `optimizer.step()`, and clip gradients after it. It belongs to the local
        step that the next call of `step` counts, which also returns the round. With a strategy that synchronizes
        weights it does nothing, so that a training loop may always call it.

        Args:
            lr: as in `step`.
            weight: of this step's gradient, as in `step`; give both the same.

        Raises:
            NotFinite: a worker's gradients are not finite and the strategy cannot contain it (on all ranks).
            CommError: the group cannot go on; the gradients are this worker's own.
            UsageError: `reduce` was called twice in a step, or after `finish`, or an argument is out of its range.
        """
        self._check_call("reduce", weight)
        if self.strategy.target == "weights":
            return
        if self._reduced is not None:
            raise UsageError("Synchronizer.reduce: called twice in one step; call step(loss) in between")
        self._begin()
        window = self._rounds.group.fragments[0].window
        window.weight = weight  # the round averages this step's gradients, whatever has been since the last one
        window.seconds += self._clock() - self._returned
        self._run(learning_rate(lr, self._replica.model, "Synchronizer.reduce"), ahead=1)
        self._reduced = weight
        self._returned = self._clock()

    def _scalar(self, loss: object) -> Tensor | float:
        """Return a loss that was told; raise UsageError where the strategy needs one, and none was."""
        if loss is None and self.strategy.needs_loss:
            raise UsageError(
                f"step {self.steps + 1}: {type(self.strategy).__name__} compares the workers' losses, and none "
                "was told; call step(loss), or behind an OptimizerHook its add_loss(loss) before optimizer.step()"
            )
        return math.inf if loss is None else scalar_loss(loss)

    def _begin(self) -> None:
        """Raise UsageError if something has happened to the model before the first step."""
        first, self._first = self._first, None
        if first:
            first.end()

    def _check_call(self, name: str, weight: float) -> None:
        if self._finished:
            raise UsageError(f"Synchronizer.{name} called after finish; make a new Synchronizer to train on")
        if not 0.0 <= weight < math.inf:
            raise UsageError(f"Synchronizer.{name}: expected a finite weight of at least 0, found {weight}")

    def _run(self, lr: LearningRate, ahead: int = 0) -> None:
        """Do what is due of rounds at the present step, or the one `ahead`."""
        step = self.steps + ahead
        try:
            self._rounds.step(step, lr)
        except CommError as error:
            raise _located(error, step) from error

    def _clock(self) -> float:
        return self.comm.clock()

    def events(self) -> list[Event]:
        """Return the events that were not returned yet, in the order in which they happened; each once.

        `step` returns one at a time. There are more where a worker has joined others in the middle of a round, or
        a change of membership has landed several rounds at once.
        """
        events = [*self._rounds.events]
        self._rounds.events.clear()
        return events

    def finish(self) -> list[Event]:
        """Land what is under way, answer the others' rounds until all have finished, then load the result.

        Every rank calls it once, after its last step; the ranks may have taken different numbers of steps.

        Returns:
            The events that were not returned yet.

        Raises:
            NotFinite: as in `step`.
            CommError: as in `step`.
        """
        self._finish()
        return self.events()

    def _finish(self) -> None:
        if self._result_loaded:
            return
        self._begin()
        self._finished, self._unfinished.steps = True, 0
        try:
            result = self._rounds.finish()
        except CommError as error:
            raise _located(error, self.steps) from error
        self._replica.flat.write(result)
        self._replica.flat.release()
        self._result_loaded = True


def _check_arguments(model: object, strategy: object, comm: object, options: object) -> None:
    for name, value, kind in (
        ("model", model, nn.Module),
        ("strategy", strategy, Strategy),
        ("comm", comm, Group),
        ("options", options, Options | None),
    ):
        check_type(f"Synchronizer: {name}", value, kind)


def _located(error: CommError, step: int) -> CommError:
    return type(error)(f"step {step}: {error}")
