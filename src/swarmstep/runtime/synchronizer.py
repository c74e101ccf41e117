"""The one stateful object: counts steps, runs the rounds, saves and loads."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from swarmstep import fault_points
from swarmstep.checkpoint import fields
from swarmstep.comm.group import Group
from swarmstep.comm.metered import Metered, Traffic
from swarmstep.errors import CheckpointError, CommError, Disagreement, PeerLost, UsageError
from swarmstep.runtime.fragment import Fragment, Loading
from swarmstep.runtime.options import Change, Options
from swarmstep.runtime.pending_round import Now
from swarmstep.runtime.replica import Replica
from swarmstep.runtime.state_transfer import hand_over
from swarmstep.signal import Round
from swarmstep.strategies.base import Strategy


class Attempt(NamedTuple):
    """What is due in one lane at a step, and done again in the next group if this one is lost meanwhile."""

    lane: int
    now: Now


class Synchronizer:
    """Synchronizes a model with those of the other workers, seldom.

    Call `step(loss)` after each `optimizer.step()` and before `zero_grad()`, and `finish()` at the end. Made
    at the same point on all ranks: they compare their configuration and take rank 0's weights and buffers.
    Load a checkpoint's model after this, then call `load_state_dict`.

    `steps` local steps have been taken, and `rounds` rounds have landed, the last that counts having started at
    step `committed`.

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
        self.strategy = strategy
        self.options = options or Options()
        self.steps = 0
        self.rounds = 0
        self.committed = 0  # the step of the last round that has landed
        self._counted: list[Traffic] = []
        self._finished = False
        self._loaded = False  # the result, into the model
        self._worker = Replica(model, strategy, self.options)
        self._lanes: list[Fragment] = []
        self._comm = Metered(comm)
        self._landed: list[Round] = []  # not yet reported
        self._renew = False  # newcomers wait
        self._level = 0  # before this step the group does nothing: some had done what was due when it was formed
        self._began = comm.clock()  # the last change of membership
        self._attend(self._enter_some(comm, None), self._landed)
        self._let_in(self._landed)

    @property
    def newcomer(self) -> bool:
        """Whether this worker has joined others in the present group."""
        return bool(self._comm.sources) and self._comm.sources[self._comm.rank] is None

    @property
    def comm(self) -> Group:
        """The group that this worker is in; an elastic one changes at rounds."""
        return self._comm.bare

    def _enter_some(self, comm: Group, attempt: Attempt | None) -> Attempt | None:
        """Enter this group, or whichever follows it, as often as it takes; return what is due there."""
        while True:
            try:
                return self._enter(comm, attempt)
            except PeerLost:
                if not comm.elastic:
                    raise
            except Disagreement as error:
                if not comm.sources or error.rank == comm.rank:
                    raise
            comm = comm.renew()

    def _enter(self, comm: Group, attempt: Attempt | None) -> Attempt | None:
        """Take part in a group: all begin together, or this worker goes on in it, or joins those who do.

        All or nothing, too: nothing has changed for those who go on if a worker is lost before the end.

        Args:
            comm: the group.
            attempt: what those who go on will do next.

        Returns:
            What this worker does next.
        """
        metered, sources = Metered(comm), comm.sources
        self._worker.agree(metered)
        newcomer = bool(sources) and sources[comm.rank] is None
        parcel: dict[str, Any] = {}
        if not sources:
            self._worker.begin(metered)
        elif None in sources:
            whole = metered.gather(torch.tensor(not newcomer and self._worker.sound))
            donor = int(whole.int().argmax())  # the first that is whole; the first of all if nobody is
            fault_points.reach(fault_points.HANDING_OVER)
            parcel = hand_over(lambda: self._parcel(attempt), metered, donor)
            fault_points.reach(fault_points.HANDED_OVER)
            fault_points.reach(fault_points.MEETING)
            self._worker.meet(metered, parcel if newcomer else None)
        lanes, level = self._worker.lanes(metered), 0
        if sources:
            level = int(metered.gather(torch.tensor(parcel["step"] if newcomer else self.steps)).max())
            saved = parcel["fragments"] if newcomer else [lane.state_dict() for lane in self._lanes]
            for lane, part in zip(lanes, saved, strict=True):
                lane.succeed(part, sources)
        fault_points.reach(fault_points.ENTERING)
        comm.decide()
        fault_points.reach(fault_points.ENTERED)
        self._comm, self._lanes, self._level, self._renew = metered, lanes, level, False
        self._counted += {id(t): t for t in (metered.traffic, lanes[0].setting.comm.traffic)}.values()
        if newcomer:
            attempt = self._take(parcel, level)
        if sources and self.options.changed:
            self.options.changed(self.change(comm.clock() - self._began))
        return attempt

    def change(self, seconds: float) -> Change:
        """Return what there is to know of the group that this worker is in now.

        Args:
            seconds: what it took to get there.
        """
        comm, counts = self._comm, (max(self.steps, self._level), self.committed, self.rounds)
        states = tuple(lane.state for lane in self._lanes)
        return Change(*counts, comm.sources, comm.names, comm.rank, self.newcomer, states, seconds)

    def _parcel(self, attempt: Attempt | None) -> dict[str, Any]:
        """Return what a newcomer takes from this worker: numbers, strings and tensors."""
        return {
            "step": self.steps,
            "rounds": self.rounds,
            "committed": self.committed,
            "attempt": [attempt.lane, *attempt.now] if attempt else [],
            "fragments": [lane.state_dict() for lane in self._lanes],
            **self._worker.possessions(),
        }

    def _take(self, parcel: dict[str, Any], level: int) -> Attempt | None:
        """Be where the foremost of the others is, from the parcel of one of them; return what they do next."""
        self.steps, self.rounds, self.committed = _counts(parcel)
        self.steps = max(self.steps, level)
        self._worker.keep(parcel)
        if not parcel["attempt"]:
            return None
        lane, *rest = parcel["attempt"]
        now = Now(*rest)
        return Attempt(lane, now if now.step == self.steps else now._replace(step=self.steps, wish=False))

    def _regroup(self, attempt: Attempt | None, landed: list[Round]) -> Attempt | None:
        """Go on in the next group: land what has been decided, give up what has not; return what is due there."""
        for lane in self._lanes:
            with contextlib.suppress(CommError):
                self._note(lane.land(), landed)
        self._began = self._comm.clock()
        return self._enter_some(self._comm.renew(), attempt)

    @property
    def bytes_sent(self) -> int:
        """Payload this worker has sent, the start and the end included."""
        return sum(traffic.sent for traffic in self._counted)

    @property
    def bytes_received(self) -> int:
        """Payload this worker has received, the start and the end included."""
        return sum(traffic.received for traffic in self._counted)

    @property
    def under_way(self) -> bool:
        """Whether a round travels; the same on all ranks."""
        return any(lane.flight for lane in self._lanes)

    def step(self, loss: Tensor | float, lr: float | None = None) -> Round | None:
        """Count a local step; land the round that is due to land, and start the one that is due to start.

        Args:
            loss: this step's training loss, a scalar; its graph is not kept.
            lr: the inner optimizer's learning rate, for methods that scale with it.

        Returns:
            A report of the round that landed, or None. Without a delay a round lands in the step it starts in.

        Raises:
            NotFinite: a worker's weights are not finite and the strategy cannot contain it (on all ranks).
            CommError: the group cannot go on; the weights are those before the round.
            UsageError: `finish` was called before.
        """
        if self._finished:
            raise UsageError("Synchronizer.step called after finish; make a new Synchronizer to train on")
        if isinstance(loss, Tensor) and loss.numel() != 1:
            raise UsageError(f"Synchronizer.step: expected a scalar loss, found shape {list(loss.shape)}")
        self.steps += 1
        landed = self._landed
        try:
            for index in range(len(self._lanes)):
                self._lanes[index].note(loss)
                wish = self._lanes[index].wishes(self.steps, lr)
                if not self._attend(Attempt(index, Now(self.steps, lr, wish)), landed):
                    break  # this worker is elsewhere now, where the others had done their step
            self._let_in(landed)
        except CommError as error:
            raise type(error)(f"step {self.steps}: {error}") from error
        return landed.pop(0) if landed else None

    def _attend(self, attempt: Attempt | None, landed: list[Round]) -> bool:
        """Do what is due, in this group or, where a worker is lost meanwhile, in the next.

        Returns:
            Whether this worker is among those it began with, and has not joined others as a newcomer.
        """
        stayed = True
        while attempt:
            try:
                self._take_step(self._lanes[attempt.lane], attempt.now, landed)
                break
            except PeerLost:
                if not self._comm.elastic:
                    raise
            attempt = self._regroup(attempt, landed)
            stayed &= not self.newcomer
        return stayed

    def _let_in(self, landed: list[Round]) -> None:
        """Form the next group if newcomers wait: at the step at which all have learnt of it, and not later."""
        while self._renew:
            self._attend(self._regroup(None, landed), landed)

    def _take_step(self, lane: Fragment, now: Now, landed: list[Round]) -> None:
        """Do what is due in one lane at this step."""
        if now.step < self._level:
            return
        if lane.flight and now.step >= lane.flight.lands:
            self._note(lane.land(), landed)
        called = None
        if self.strategy.when.voting:
            if lane.flight:  # nobody is heard while a round travels
                return
            called = lane.call(now)
            if not called.due:
                return
        elif not now.wish:
            return
        else:
            self._note(lane.land(), landed)
        lane.start(lane.open(now), now, called)
        if not self.options.delay:
            self._note(lane.land(), landed)

    def _note(self, report: Round | None, landed: list[Round]) -> None:
        if report:
            self.rounds += 1
            self.committed = max(self.committed, report.step)
            self._renew |= report.fate.renew and not (report.fate.stop or report.fate.finish)
            report = dataclasses.replace(report, number=self.rounds)
            landed.append(report)
            if fault_points.watched():
                fragment = self._lanes[report.fragment]
                x = self._worker.flat.open(report.fragment)
                fault_points.reach(fault_points.LANDED, target="weights", report=report, x=x, state=fragment.state)

    def landed(self) -> list[Round]:
        """Return reports of rounds that have landed and were not returned by `step`; each is returned once.

        There are some where a worker has joined in the middle of a round, or a change of membership has landed
        several at once.
        """
        landed, self._landed = self._landed, []
        return landed

    def finish(self) -> list[Round]:
        """Land what is under way, answer the others' rounds until all have finished, then load the result.

        Every rank calls it once, after its last step; the ranks may have taken different numbers of steps.

        Returns:
            Reports of the rounds that landed meanwhile.

        Raises:
            NotFinite: as in `step`.
            CommError: as in `step`.
        """
        if self._loaded:
            return []
        self._finished = True
        landed = self.landed()
        try:
            while True:
                try:
                    result = self._finish_together(landed)
                    break
                except PeerLost:
                    if not self._comm.elastic:
                        raise
                self._regroup(None, landed)
        except CommError as error:
            raise type(error)(f"step {self.steps}: {error}") from error
        self._worker.flat.write(result)
        self._worker.flat.release()
        self._loaded = True
        return landed

    def _finish_together(self, landed: list[Round]) -> Tensor:
        fault_points.reach(fault_points.FINISHING)
        gone = Now(self.steps, None, False, finished=True)
        for lane in sorted(self._lanes, key=lambda lane: lane.flight.lands if lane.flight else 0):
            self._note(lane.land(), landed)
        while (called := self._lanes[0].call(gone)).roll.steps.any():
            if called.due:
                lane = self._lanes[called.fragment]
                lane.start(lane.open(gone), gone, called)
                self._note(lane.land(), landed)
        fault_points.reach(fault_points.RESULT)
        result = self._result()
        self._comm.decide()
        return result

    def result(self) -> Tensor:
        """Return the model as `finish` would leave it now, as a flat vector: all parameters, then all buffers.

        Collective; changes nothing. What is under way is not in it.
        """
        return self._worker.flat.in_plain_order(self._result())

    def _result(self) -> Tensor:
        parts = [
            lane.strategy.result(self._worker.flat.read(lane.index), lane.state, self._comm)
            for lane in self._lanes
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def state_dict(self) -> dict[str, Any]:
        """Return numbers, strings and tensors: what this rank needs, beside model and optimizer, to go on.

        Waits for the round under way, which lands at its step all the same.
        """
        return {
            "configuration": self._worker.describe(self._comm.size),
            "rank": self._comm.rank,
            "step": self.steps,
            "rounds": self.rounds,
            "committed": self.committed,
            "weights": fields.fingerprint(self._worker.flat.read()),
            "fragments": [lane.state_dict() for lane in self._lanes],
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
        try:
            if sources:
                counts, self._lanes = self._changed(saved, sources)
            else:
                counts, checked = self._checked(saved)
                for lane, part in zip(self._lanes, checked, strict=True):
                    lane.load(part)
        except (TypeError, ValueError, LookupError, AttributeError, RuntimeError) as error:
            raise CheckpointError(f"the checkpoint does not fit this run ({error}); start anew") from error
        self.steps, self.rounds, self.committed = counts

    def _changed(
        self, saved: Mapping[str, Any], sources: Sequence[int | None]
    ) -> tuple[list[int], list[Fragment]]:
        """Return the counts, and new lanes that go on from those of another group; changes nothing."""
        size = int(fields.field(saved, "configuration")["world size"])
        self._check_configuration(saved, self._worker.describe(size))
        parts = fields.field(saved, "fragments")
        fields.same("number of fragments", len(self._lanes), len(parts))
        lanes = self._worker.lanes(self._comm)
        for lane, part in zip(lanes, parts, strict=True):
            lane.succeed(part, sources)
        return _counts(saved), lanes

    def _check_configuration(self, saved: Mapping[str, Any], mine: Mapping[str, str]) -> None:
        theirs = fields.field(saved, "configuration")
        for field in {**mine, **theirs}:
            fields.same(field, mine.get(field, "absent"), theirs.get(field, "absent"))

    def _checked(self, saved: Mapping[str, Any]) -> tuple[list[int], list[Loading]]:
        """Return the counts, and what there is to load into each lane; changes nothing."""
        fields.same("rank", self._comm.rank, fields.field(saved, "rank"))
        self._check_configuration(saved, self._worker.describe(self._comm.size))
        if fields.field(saved, "weights") != fields.fingerprint(self._worker.flat.read()):
            raise CheckpointError(
                "weights: the model does not hold the weights of the checkpoint; load the model's state dict "
                "after making the Synchronizer and before Synchronizer.load_state_dict"
            )
        parts = fields.field(saved, "fragments")
        fields.same("number of fragments", len(self._lanes), len(parts))
        return _counts(saved), [lane.checked(part) for lane, part in zip(self._lanes, parts, strict=True)]


def _counts(saved: Mapping[str, Any]) -> list[int]:
    counts = [fields.field(saved, name) for name in ("step", "rounds", "committed")]
    if any(type(count) is not int or not 0 <= count < 1 << 62 for count in counts):
        raise CheckpointError(f"step, rounds, committed: expected numbers of steps and rounds, found {counts}")
    return counts
