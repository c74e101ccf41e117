"""The one stateful object: counts steps, runs the rounds, saves and loads."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from swarmstep.arguments import check_type
from swarmstep.comm.group import Group
from swarmstep.errors import CommError, UsageError
from swarmstep.runtime import synchronizer_state
from swarmstep.runtime.first_step import FirstStep
from swarmstep.runtime.learning_rate import LearningRate, Rate, learning_rate
from swarmstep.runtime.number import scalar_loss
from swarmstep.runtime.options import Options, Stateful
from swarmstep.runtime.replica import Replica
from swarmstep.runtime.rounds import Rounds
from swarmstep.runtime.startup_checks import check_elastic
from swarmstep.signal import Event
from swarmstep.strategies.base import Strategy
from swarmstep.when import Never


class Synchronizer:
    """Synchronizes a model with those of the other workers, seldom.

    Call `step(loss)` after each `optimizer.step()` and before `zero_grad()`, and `finish()` at the end; with a
    strategy for gradients (`Synchronous`), also `reduce()` between `backward()` and `optimizer.step()`. Made at
    the same point on all ranks: they compare their configuration and take rank 0's weights and buffers. Load
    pretrained weights before that. To go on from a checkpoint, load the model's state dict, before or after, and
    then call `load_state_dict`.

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
            check_elastic(strategy)
        self.strategy = strategy
        self.options = options or Options()
        self._finished = False
        self._result_loaded = False  # into the model
        self._reduced: float | None = None  # the weight that the last call of `reduce` gave to the coming step
        self._replica = Replica(model, strategy, self.options)
        self._rounds = Rounds(self._replica, comm)
        self._first: FirstStep | None = FirstStep(model, wrapped=isinstance(strategy.when, Never))
        self._returned = self._clock()  # when the last call of `step` or `reduce` ended

    @property
    def steps(self) -> int:
        """How many local steps this worker has taken; with `Balanced`, those of an equal worker."""
        return self._rounds.counts.steps

    @property
    def rounds(self) -> int:
        """How many rounds of the run have landed."""
        return self._rounds.counts.rounds

    @property
    def committed(self) -> int:
        """The step at which the last round that counts started."""
        return self._rounds.counts.committed

    @property
    def comm(self) -> Group:
        """The group that this worker is in; in an elastic run it changes between rounds."""
        return self._rounds.group.comm.bare

    @property
    def newcomer(self) -> bool:
        """Whether this worker joined others in the present group."""
        return self._rounds.group.newcomer

    @property
    def states(self) -> tuple[NamedTuple, ...]:
        """The strategy's state for each fragment of the model; to be looked at only."""
        return tuple(fragment.state for fragment in self._rounds.group.fragments)

    @property
    def triggers(self) -> tuple[NamedTuple, ...]:
        """The trigger's state for each fragment of the model."""
        return tuple(fragment.trigger for fragment in self._rounds.group.fragments)

    @property
    def bytes_sent(self) -> int:
        """Payload this worker has sent in bytes, including the start and the end."""
        return sum(traffic.sent for traffic in self._rounds.group.traffic)

    @property
    def bytes_received(self) -> int:
        """Payload this worker has received in bytes, including the start and the end."""
        return sum(traffic.received for traffic in self._rounds.group.traffic)

    @property
    def under_way(self) -> bool:
        """Whether a round is under way in the background; the same on all ranks."""
        return any(fragment.pending for fragment in self._rounds.group.fragments)

    def step(
        self, loss: Tensor | float, lr: Rate | None = None, weight: float = 1.0, seconds: float | None = None
    ) -> Event | None:
        """Count a local step; land the round that is due to land, and start the one that is due to start.

        Args:
            loss: this step's training loss, a scalar; its graph is not kept.
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
            UsageError: `finish` was called before, an argument is out of its range, or at the first step: weights
                were loaded since this was made, or the model was wrapped.
        """
        self._check_call("step", weight)
        loss = scalar_loss(loss)
        gradients = self.strategy.target == "gradients"
        if gradients and self._reduced != weight:
            raise UsageError(
                f"Synchronizer.step: {type(self.strategy).__name__} synchronizes gradients; call "
                "reduce(lr, weight) between backward() and optimizer.step(), with the same weight as step"
            )
        self._begin()
        rate = learning_rate(lr, self._replica.model, "Synchronizer.step")
        spent, self._reduced = self._clock() - self._returned if seconds is None else seconds, None
        rounds = self._rounds
        rounds.counts.steps += self.strategy.when.count(self.triggers[0])
        for fragment in rounds.group.fragments:
            fragment.window.add(loss, 0.0 if gradients else weight, spent)
        if not gradients:
            self._run(rate)
        self._returned = self._clock()
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
        if self._result_loaded:
            return []
        self._begin()
        self._finished = True
        try:
            result = self._rounds.finish()
        except CommError as error:
            raise _located(error, self.steps) from error
        self._replica.flat.write(result)
        self._replica.flat.release()
        self._result_loaded = True
        return self.events()

    def attach(self, name: str, thing: Stateful) -> None:
        """Let newcomers of an elastic group take over one thing more; see `Options.stateful`.

        A worker that joined others takes its state now: call this before any other method.
        """
        self._replica.attach(name, thing)

    def result(self) -> Tensor:
        """Return the model as `finish` would leave it now, as a flat vector: all parameters, then all buffers.

        Collective; changes nothing. What is under way is not in it.
        """
        return self._replica.flat.in_plain_order(self._rounds.result())

    def state_dict(self) -> dict[str, Any]:
        """Return numbers, strings and tensors: what this rank needs, besides model and optimizer, to go on.

        Waits for the round under way, which still lands at its step.
        """
        if self._reduced is not None:
            raise UsageError("Synchronizer.state_dict: called between reduce() and step(); call it after step()")
        return synchronizer_state.save(self._replica, self._rounds.group, self._rounds.counts)

    def load_state_dict(self, saved: Mapping[str, Any], sources: Sequence[int | None] = ()) -> None:
        """Go on from a `state_dict`; load the model's own state dict first.

        Args:
            saved: this rank's, or with `sources`, that of any rank of the group that was saved.
            sources: for each rank, its rank in the group that was saved, None for a newcomer. Empty: the group
                is as it was.

        Raises:
            CheckpointError: names the field that differs; nothing was loaded then.
        """
        synchronizer_state.load(saved, sources, self._replica, self._rounds.group, self._rounds.counts)
        if self._first:
            self._first.loaded()


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
