"""The one stateful object: counts steps, runs the rounds, saves and loads."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from swarmstep import fault_points
from swarmstep.checkpoint import fields
from swarmstep.comm.group import Group
from swarmstep.errors import CheckpointError, CommError, PeerLost, UsageError
from swarmstep.runtime import fragment_state
from swarmstep.runtime.fragment import Fragment
from swarmstep.runtime.fragment_state import Loading
from swarmstep.runtime.options import Options
from swarmstep.runtime.regrouping import Attempt, Counts, Regrouping
from swarmstep.runtime.replica import Replica
from swarmstep.runtime.round_context import StepContext
from swarmstep.signal import Event, Round
from swarmstep.strategies.base import Strategy


class Synchronizer:
    """Synchronizes a model with those of the other workers, seldom.

    Call `step(loss)` after each `optimizer.step()` and before `zero_grad()`, and `finish()` at the end. Made
    at the same point on all ranks: they compare their configuration and take rank 0's weights and buffers.
    Load a checkpoint's model after this, then call `load_state_dict`.

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
        if comm.elastic and strategy.when.per_rank:
            raise UsageError(
                f"{strategy.when}: in an elastic group all workers take the same number of steps between rounds; "
                "expected one number for all"
            )
        self.strategy = strategy
        self.options = options or Options()
        self._finished = False
        self._result_loaded = False  # into the model
        self._counts = Counts()
        self._events: list[Event] = []  # not yet returned
        self._replica = Replica(model, strategy, self.options)
        self._group = Regrouping(self._replica, self._counts, self._events)
        self._attend(self._group.enter(comm, None, comm.clock()))
        self._admit_newcomers()
        self._returned = self._clock()  # when the last call of `step` or `reduce` ended

    @property
    def steps(self) -> int:
        """How many local steps this worker has taken."""
        return self._counts.steps

    @property
    def rounds(self) -> int:
        """How many rounds of the run have landed."""
        return self._counts.rounds

    @property
    def committed(self) -> int:
        """The step at which the last round that counts started."""
        return self._counts.committed

    @property
    def comm(self) -> Group:
        """The group that this worker is in; in an elastic run it changes between rounds."""
        return self._group.comm.bare

    @property
    def newcomer(self) -> bool:
        """Whether this worker joined others in the present group."""
        return self._group.newcomer

    @property
    def states(self) -> tuple[NamedTuple, ...]:
        """The strategy's state for each fragment of the model; to be looked at only."""
        return tuple(fragment.state for fragment in self._group.fragments)

    @property
    def bytes_sent(self) -> int:
        """Payload this worker has sent in bytes, including the start and the end."""
        return sum(traffic.sent for traffic in self._group.traffic)

    @property
    def bytes_received(self) -> int:
        """Payload this worker has received in bytes, including the start and the end."""
        return sum(traffic.received for traffic in self._group.traffic)

    @property
    def under_way(self) -> bool:
        """Whether a round is under way in the background; the same on all ranks."""
        return any(fragment.pending for fragment in self._group.fragments)

    def step(self, loss: Tensor | float, lr: float | None = None, weight: float = 1.0) -> Event | None:
        """Count a local step; land the round that is due to land, and start the one that is due to start.

        Args:
            loss: this step's training loss, a scalar; its graph is not kept.
            lr: the inner optimizer's learning rate, for methods that scale with it.
            weight: of this step, at least 0, in a unit that all workers share: the examples or tokens of its
                batch, say. In a round a worker counts by the sum since its last one.

        Returns:
            The next event that was not returned yet: the `Round` that landed, or in an elastic group a
            `MembershipChange`; None if nothing happened. `events` returns the others. Without a delay a round
            lands in the step it starts in.

        Raises:
            NotFinite: a worker's weights are not finite and the strategy cannot contain it (on all ranks).
            CommError: the group cannot go on; the weights are those before the round.
            UsageError: `finish` was called before, or an argument is out of its range.
        """
        if self._finished:
            raise UsageError("Synchronizer.step called after finish; make a new Synchronizer to train on")
        if isinstance(loss, Tensor) and loss.numel() != 1:
            raise UsageError(f"Synchronizer.step: expected a scalar loss, found shape {list(loss.shape)}")
        if not 0.0 <= weight < math.inf:
            raise UsageError(f"Synchronizer.step: expected a finite weight of at least 0, found {weight}")
        seconds = self._clock() - self._returned
        self._counts.steps += 1
        try:
            for index in range(self.options.fragments):
                fragment = self._group.fragments[index]
                fragment.window.add(loss, weight, seconds)
                now = StepContext(self.steps, lr, fragment.wants_round(self.steps, lr))
                if not self._attend(Attempt(index, now)):
                    break  # this worker is elsewhere now, where the others have done what is due at this step
            self._admit_newcomers()
        except CommError as error:
            raise self._located(error) from error
        self._returned = self._clock()
        return self._events.pop(0) if self._events else None

    def _clock(self) -> float:
        return self.comm.clock()

    def events(self) -> list[Event]:
        """Return the events that were not returned yet, in the order in which they happened; each once.

        `step` returns one at a time. There are more where a worker has joined others in the middle of a round, or
        a change of membership has landed several rounds at once.
        """
        events, self._events[:] = [*self._events], []
        return events

    def _attend(self, attempt: Attempt | None) -> bool:
        """Do what is due, in this group or, if it loses a worker meanwhile, in the next.

        Returns:
            Whether this worker is still among those it began with, and has not joined others as a newcomer.
        """
        stayed = True
        while attempt:
            try:
                self._take_step(self._group.fragments[attempt.fragment], attempt.now)
                break
            except PeerLost:
                if not self.comm.elastic:
                    raise
            attempt = self._regroup(attempt)
            stayed &= not self.newcomer
        return stayed

    def _admit_newcomers(self) -> None:
        """Form the next group if newcomers wait: at the step at which all have learnt of it, and not later."""
        while self._group.newcomers_wait:
            self._attend(self._regroup(None))

    def _regroup(self, attempt: Attempt | None) -> Attempt | None:
        """Go on in the next group: land what was decided, drop what was not; return what is due there."""
        for fragment in self._group.fragments:
            with contextlib.suppress(CommError):
                self._record(fragment.land())
        return self._group.leave(attempt)

    def _take_step(self, fragment: Fragment, now: StepContext) -> None:
        """Do what is due for one fragment at this step."""
        if now.step < self._group.level:
            return
        if fragment.pending and now.step >= fragment.pending.lands:
            self._record(fragment.land())
        called = None
        if self.strategy.when.voting:
            if fragment.pending:  # no roll is called while a round is under way
                return
            called = fragment.call_roll(now)
            if not called.due:
                return
        elif not now.requested:
            return
        else:
            self._record(fragment.land())
        fragment.start(fragment.open(now), now, called)
        if not self.options.delay:
            self._record(fragment.land())

    def _record(self, landed: Round | None) -> None:
        """Count a round that has landed."""
        if landed is None:
            return
        counts, decision = self._counts, landed.decision
        counts.rounds += 1
        counts.committed = max(counts.committed, landed.step)
        self._group.newcomers_wait |= decision.renew and not (decision.stop or decision.finish)
        landed = dataclasses.replace(landed, number=counts.rounds)
        self._events.append(landed)
        if fault_points.watched():
            x, state = self._replica.flat.open(landed.fragment), self._group.fragments[landed.fragment].state
            fault_points.reach(fault_points.LANDED, target="weights", report=landed, x=x, state=state)

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
        self._finished = True
        try:
            while True:
                try:
                    result = self._finish_together()
                    break
                except PeerLost:
                    if not self.comm.elastic:
                        raise
                self._regroup(None)
        except CommError as error:
            raise self._located(error) from error
        self._replica.flat.write(result)
        self._replica.flat.release()
        self._result_loaded = True
        return self.events()

    def _finish_together(self) -> Tensor:
        fault_points.reach(fault_points.FINISHING)
        fragments, done = self._group.fragments, StepContext(self.steps, None, requested=False, finished=True)
        for fragment in sorted(fragments, key=lambda fragment: fragment.pending.lands if fragment.pending else 0):
            self._record(fragment.land())
        while (called := fragments[0].call_roll(done)).roll.rounds.any():
            if called.due:
                fragment = fragments[called.fragment]
                fragment.start(fragment.open(done), done, called)
                self._record(fragment.land())
        fault_points.reach(fault_points.RESULT)
        result = self._result()
        self._group.comm.decide()
        return result

    def _located(self, error: CommError) -> CommError:
        return type(error)(f"step {self.steps}: {error}")

    def result(self) -> Tensor:
        """Return the model as `finish` would leave it now, as a flat vector: all parameters, then all buffers.

        Collective; changes nothing. What is under way is not in it.
        """
        return self._replica.flat.in_plain_order(self._result())

    def _result(self) -> Tensor:
        parts = [
            fragment.strategy.result(self._replica.flat.read(fragment.index), fragment.state, self._group.comm)
            for fragment in self._group.fragments
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def state_dict(self) -> dict[str, Any]:
        """Return numbers, strings and tensors: what this rank needs, besides model and optimizer, to go on.

        Waits for the round under way, which still lands at its step.
        """
        comm = self._group.comm
        return {
            "configuration": self._replica.describe(comm.size),
            "rank": comm.rank,
            **self._counts.state_dict(),
            "weights": fields.fingerprint(self._replica.flat.read()),
            "fragments": [fragment_state.save(fragment) for fragment in self._group.fragments],
        }

    def load_state_dict(self, saved: Mapping[str, Any], sources: Sequence[int | None] = ()) -> None:
        """Go on from a `state_dict`; load the model's own state dict first.

        Args:
            saved: this rank's, or with `sources`, that of any rank of the group that was saved.
            sources: for each rank, its rank in the group that was saved, None for a newcomer. Empty: the group
                is as it was.

        Raises:
            CheckpointError: names the field that differs; nothing was loaded then.
        """
        group = self._group
        try:
            if sources:
                counts, group.fragments = self._carried(saved, sources)
            else:
                counts, checked = self._checked(saved)
                for fragment, part in zip(group.fragments, checked, strict=True):
                    fragment_state.load(fragment, part)
        except (TypeError, ValueError, LookupError, AttributeError, RuntimeError) as error:
            raise CheckpointError(f"the checkpoint does not fit this run ({error}); start anew") from error
        self._counts.take(counts)

    def _carried(self, saved: Mapping[str, Any], sources: Sequence[int | None]) -> tuple[Counts, list[Fragment]]:
        """Return the counts, and new fragments that go on from those of another group; changes nothing."""
        size = int(fields.field(saved, "configuration")["world size"])
        self._check_configuration(saved, self._replica.describe(size))
        parts = self._parts(saved)
        fragments = self._replica.fragments(self._group.comm)
        for fragment, part in zip(fragments, parts, strict=True):
            fragment_state.carry_over(fragment, part, sources)
        return Counts.load(saved), fragments

    def _checked(self, saved: Mapping[str, Any]) -> tuple[Counts, list[Loading]]:
        """Return the counts, and what there is to load into each fragment; changes nothing."""
        fields.same("rank", self._group.comm.rank, fields.field(saved, "rank"))
        self._check_configuration(saved, self._replica.describe(self._group.comm.size))
        if fields.field(saved, "weights") != fields.fingerprint(self._replica.flat.read()):
            raise CheckpointError(
                "weights: the model does not hold the weights of the checkpoint; load the model's state dict "
                "after making the Synchronizer and before Synchronizer.load_state_dict"
            )
        parts = self._parts(saved)
        pairs = zip(self._group.fragments, parts, strict=True)
        return Counts.load(saved), [fragment_state.check(fragment, part) for fragment, part in pairs]

    def _check_configuration(self, saved: Mapping[str, Any], own: Mapping[str, str]) -> None:
        found = fields.field(saved, "configuration")
        for field in {**own, **found}:
            fields.same(field, own.get(field, "absent"), found.get(field, "absent"))

    def _parts(self, saved: Mapping[str, Any]) -> list[Any]:
        parts = fields.field(saved, "fragments")
        fields.same("number of fragments", self.options.fragments, len(parts))
        return parts
