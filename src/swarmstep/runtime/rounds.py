"""The rounds of a run: started and landed when they are due, in this group or in the one that follows it."""

from __future__ import annotations

import contextlib
import dataclasses

import torch
from torch import Tensor

from swarmstep import fault_points
from swarmstep.comm.background import BackgroundTask
from swarmstep.comm.group import Group
from swarmstep.errors import CommError, PeerLost
from swarmstep.runtime.averaged import with_means
from swarmstep.runtime.fragment import Fragment
from swarmstep.runtime.learning_rate import LearningRate
from swarmstep.runtime.regrouping import Attempt, Counts, Regrouping
from swarmstep.runtime.replica import Replica
from swarmstep.runtime.round_context import StepContext
from swarmstep.runtime.suspicions import Suspicions
from swarmstep.signal import Event, Round


class Rounds:
    """Runs the rounds of one worker.

    Args:
        replica: this worker.
        comm: its first group.

    Attributes:
        counts: how far this worker is.
        group: the present group, with this worker's part in it.
        events: those that the caller has not been told of yet.
        over: a round has decided that the run stops, or is as if all steps had been taken.
    """

    def __init__(self, replica: Replica, comm: Group) -> None:
        self._replica = replica
        self.counts = Counts()
        self.events: list[Event] = []
        self.over = False
        self._renewal: tuple[float, BackgroundTask[Group]] | None = (
            None  # since when, and what forms the next group
        )
        options = replica.options
        trained = replica.strategy.target == "weights" and options.fragments == 1 and not options.delay
        self._suspicions = Suspicions(replica.flat if trained else None)
        self.group = Regrouping(replica, self.counts, self.events)
        self.attend(self.group.enter(comm, None, comm.clock()))
        self.admit_newcomers()

    @property
    def _meets(self) -> bool:
        """Whether rounds begin when all members want them, and are what the count of steps counts."""
        return self._replica.strategy.when.timed and self.group.comm.elastic

    def count_step(self) -> None:
        """Count a local step; where the members take different numbers of them, all are at the same round."""
        counts = self.counts
        when, trigger = self._replica.strategy.when, self.group.fragments[0].trigger
        counts.steps = counts.rounds + 1 if self._meets else counts.steps + when.count(trigger)

    def step(self, step: int, lr: LearningRate) -> None:
        """Ask the trigger of each fragment, and do what is due at this step."""
        for index in range(self._replica.options.fragments):
            requested = self.group.fragments[index].wants_round(step, lr.highest)
            if self._meets:
                if not self._is_in_a_group():
                    return
                requested = self.group.comm.meets(self.counts.rounds + 1, requested)
            if not self.attend(Attempt(index, StepContext(step, lr.highest, requested, rates=lr.each))):
                break  # this worker is elsewhere now, where the others have done what is due at this step
        self.admit_newcomers()

    def _is_in_a_group(self) -> bool:
        """Return whether there is a group for a round; where it is being formed, steps go on meanwhile."""
        comm, present = self.group.comm, self._renewal
        if present is None and (comm.broken or self.group.newcomers_wait):
            self._renewal = comm.clock(), comm.renewal()
        elif present is not None and present[1].done:
            self._enter_next()
        return self._renewal is None

    def _enter_next(self) -> None:
        """Enter the group that is being formed, once it is."""
        if self._renewal:
            (began, formed), self._renewal = self._renewal, None
            self.group.enter(formed.result(), None, began)

    def attend(self, attempt: Attempt | None) -> bool:
        """Do what is due, in this group or, if it loses a worker meanwhile, in the next.

        Returns:
            Whether this worker is still among those it began with, and has not joined others as a newcomer.
        """
        stayed = True
        while attempt:
            try:
                if self._meets and attempt.now.requested and attempt.now.step >= self.group.level:
                    self.group.comm.meets(self.counts.rounds + 1, True)  # in this group, too, if one was lost
                self._take_step(self.group.fragments[attempt.fragment], attempt.now)
                break
            except PeerLost:
                if not self.group.comm.elastic:
                    raise
            attempt = self._regroup(attempt)
            stayed &= not self.group.newcomer
        return stayed

    def admit_newcomers(self) -> None:
        """Form the next group if newcomers wait: at the step at which all have learnt of it, and not later."""
        while self.group.newcomers_wait and not self._meets:
            self.attend(self._regroup(None))

    def _regroup(self, attempt: Attempt | None) -> Attempt | None:
        """Go on in the next group: land what was decided, drop what was not; return what is due there."""
        for fragment in self.group.fragments:
            with contextlib.suppress(CommError):
                self._record(fragment.land())
        return self.group.leave(attempt)

    def _take_step(self, fragment: Fragment, now: StepContext) -> None:
        """Do what is due for one fragment at this step."""
        if now.step < self.group.level:
            return
        if fragment.pending and now.step >= fragment.pending.lands:
            self._record(fragment.land())
        called = None
        if self._replica.strategy.when.voting:
            if fragment.pending:  # no roll is called while a round is under way
                return
            called = fragment.call_roll(now)
            if not called.due:
                return
        elif not now.requested:
            return
        else:
            self._record(fragment.land())
        self._suspicions.before(now.step, self.group.comm.rank, fragment.window.mean_loss, now.lr)
        fragment.start(fragment.open(now), now, called)
        if not self._replica.options.delay:
            self._record(fragment.land())

    def _record(self, landed: Round | None) -> None:
        """Count a round that has landed."""
        if landed is None:
            return
        counts, decision, target = self.counts, landed.decision, self._replica.strategy.target
        counts.rounds += 1
        counts.committed = max(counts.committed, landed.step)
        self.over |= decision.stop or decision.finish
        self.group.newcomers_wait |= decision.renew and not (decision.stop or decision.finish)
        landed, fragment = dataclasses.replace(landed, number=counts.rounds), self.group.fragments[landed.fragment]
        self.events.append(landed)
        self._suspicions.after(landed, fragment.norm)
        if fault_points.watched():
            x = fragment.context.vector.open(landed.fragment)
            fault_points.reach(fault_points.LANDED, target=target, report=landed, x=x, state=fragment.state)

    def finish(self) -> Tensor:
        """Land what is under way, answer the others' rounds until all have finished, and return the result."""
        while True:
            try:
                self._enter_next()
                return self._finish_together()
            except PeerLost:
                if not self.group.comm.elastic:
                    raise
            self._regroup(None)

    def _finish_together(self) -> Tensor:
        fault_points.reach(fault_points.FINISHING)
        fragments = self.group.fragments
        done = StepContext(self.counts.steps, None, requested=False, finished=True)
        for fragment in sorted(fragments, key=lambda fragment: fragment.pending.lands if fragment.pending else 0):
            self._record(fragment.land())
        while (called := fragments[0].call_roll(done)).roll.rounds.any():
            if called.due:
                fragment = fragments[called.fragment]
                fragment.start(fragment.open(done), done, called)
                self._record(fragment.land())
        fault_points.reach(fault_points.RESULT)
        result = self.result()
        self.group.comm.decide()
        return result

    def result(self) -> Tensor:
        """Return the vector that `finish` would return now, without what is under way. Collective."""
        parts = [self._result(fragment) for fragment in self.group.fragments]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _result(self, fragment: Fragment) -> Tensor:
        """Return the result of a fragment; before its first round, that of one which begins at the workers' mean.

        Its state is still at the start then, without anything that has been trained.
        """
        flat, comm, state = self._replica.flat, self.group.comm, fragment.state
        x, layout = flat.read(fragment.index), flat.fragments[fragment.index]
        if state and not fragment.rounds:
            mean, _ = comm.mean(x, float(x.isfinite().all()))
            state = fragment.strategy.init(mean, layout, comm)
        result = fragment.strategy.result(x, state, comm)
        if layout.averaged and fragment.strategy.one_result:
            averaged = slice(layout.parameters, layout.parameters + layout.averaged)
            result[averaged] = with_means(x, layout, float(x.isfinite().all()), comm)[averaged]
        return result
