"""How a worker gets into its first group, and from each group into the next."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from swarmstep import fault_points
from swarmstep.checkpoint import fields
from swarmstep.comm.group import Decision, Group
from swarmstep.comm.metered import Metered, Traffic
from swarmstep.errors import CheckpointError, Disagreement, PeerLost
from swarmstep.runtime import fragment_state
from swarmstep.runtime.fragment import Fragment
from swarmstep.runtime.replica import Replica
from swarmstep.runtime.round_context import StepContext
from swarmstep.runtime.state_transfer import hand_over
from swarmstep.signal import Distrust, Event, MembershipChange, Round


@dataclasses.dataclass
class Counts:
    """How far a worker is: local steps taken, rounds landed, and the step of the last round that counts."""

    steps: int = 0
    rounds: int = 0
    committed: int = 0

    def state_dict(self) -> dict[str, int]:
        """Return the counts by the names that checkpoints have for them."""
        return {"step": self.steps, "rounds": self.rounds, "committed": self.committed}

    def take(self, other: Counts) -> None:
        """Be as far as `other`."""
        self.steps, self.rounds, self.committed = other.steps, other.rounds, other.committed

    @staticmethod
    def load(saved: Mapping[str, Any]) -> Counts:
        """Return the counts of a `state_dict`; raise CheckpointError where they are none."""
        counts = [fields.field(saved, name) for name in ("step", "rounds", "committed")]
        if any(type(count) is not int or not 0 <= count < 1 << 62 for count in counts):
            raise CheckpointError(f"step, rounds, committed: expected numbers of steps and rounds, found {counts}")
        return Counts(*counts)


class Attempt(NamedTuple):
    """What is due for one fragment at a step; tried again in the next group if this one is lost meanwhile."""

    fragment: int
    now: StepContext


class Regrouping:
    """The group that a worker is in, with its part in it, and the way to the next group.

    All or nothing: those who go on keep what they have if a worker is lost before all are in the new group.

    Args:
        replica: of this worker.
        counts: of this worker; a newcomer's are set to those of the others.
        events: changes of membership are appended to it.

    Attributes:
        comm: the group.
        fragments: this worker's part in it.
        level: before this step the group does nothing: some had done what was due when it was formed.
        newcomers_wait: the group has decided to form the next one.
        traffic: of all groups so far.
    """

    comm: Metered
    fragments: list[Fragment]

    def __init__(self, replica: Replica, counts: Counts, events: list[Event]) -> None:
        self._replica, self._counts, self._events = replica, counts, events
        self.fragments = []
        self.level = 0
        self.newcomers_wait = False
        self.traffic: list[Traffic] = []

    @property
    def newcomer(self) -> bool:
        """Whether this worker has joined others in the present group."""
        return _is_newcomer(self.comm)

    def leave(self, attempt: Attempt | None) -> Attempt | None:
        """Go on in the group that follows the present one; arguments and result as of `enter`."""
        began = self.comm.clock()
        return self.enter(self.comm.renew(), attempt, began)

    def enter(self, group: Group, attempt: Attempt | None, began: float) -> Attempt | None:
        """Take part in this group, or in whichever follows it if a worker is lost on the way.

        Args:
            group: whose members all call this.
            attempt: what those who go on will do next (None: nothing is due).
            began: when the change of membership did, by the group's clock.

        Returns:
            What this worker does next: the same as all others.
        """
        while True:
            try:
                return self._enter(group, attempt, began)
            except PeerLost:
                if not group.elastic:
                    raise
            except Disagreement as error:
                if not group.sources or error.rank == group.rank:
                    raise
            group = group.renew()

    def _enter(self, group: Group, attempt: Attempt | None, began: float) -> Attempt | None:
        comm, sources, newcomer = Metered(group), group.sources, _is_newcomer(group)
        self._replica.agree(comm)
        parcel: dict[str, Any] = {}
        if not sources:
            self._replica.begin(comm)
        elif None in sources:
            parcel = self._hand_over(comm, attempt)
            self._replica.meet(comm, parcel if newcomer else None)
        fragments, level = self._replica.fragments(comm), 0
        if sources:
            level = int(comm.gather(torch.tensor(parcel["step"] if newcomer else self._counts.steps)).max())
            saved = parcel["fragments"] if newcomer else [fragment_state.save(part) for part in self.fragments]
            for fragment, state in zip(fragments, saved, strict=True):
                fragment_state.carry_over(fragment, state, sources)
        fault_points.reach(fault_points.ENTERING)
        group.decide()
        fault_points.reach(fault_points.ENTERED)
        self.comm, self.fragments, self.level, self.newcomers_wait = comm, fragments, level, False
        self.traffic += {id(t): t for t in (comm.traffic, fragments[0].context.comm.traffic)}.values()
        if newcomer:
            attempt = self._take(parcel)
        if sources:
            self._report_change(began)
        return attempt

    def _hand_over(self, comm: Metered, attempt: Attempt | None) -> dict[str, Any]:
        """Return what newcomers take: from the first rank whose weights are finite, the first of all if none's."""
        finite = comm.gather(torch.tensor(not _is_newcomer(comm) and self._replica.finite))
        fault_points.reach(fault_points.HANDING_OVER)
        parcel = hand_over(lambda: self._parcel(attempt), comm, int(finite.int().argmax()))
        fault_points.reach(fault_points.HANDED_OVER)
        fault_points.reach(fault_points.MEETING)
        return parcel

    def _parcel(self, attempt: Attempt | None) -> dict[str, Any]:
        """Return what newcomers take from this worker: numbers, strings and tensors."""
        return {
            **self._counts.state_dict(),
            "attempt": [attempt.fragment, *attempt.now] if attempt else [],
            "fragments": [fragment_state.save(fragment) for fragment in self.fragments],
            "events": [_packed(event) for event in self._events],
            **self._replica.possessions(),
        }

    def _take(self, parcel: dict[str, Any]) -> Attempt | None:
        """Be where the foremost of the others is, from the parcel of one of them; return what they do next."""
        self._counts.take(Counts.load(parcel))
        self._counts.steps = max(self._counts.steps, self.level)
        self._replica.keep(parcel)
        # What the donor's caller has not been told of yet is not in what its stateful objects have handed over.
        self._events += [_unpacked(packed) for packed in parcel["events"]]
        if not parcel["attempt"]:
            return None
        fragment, *rest = parcel["attempt"]
        now = StepContext(*rest)
        steps = self._counts.steps
        return Attempt(fragment, now if now.step == steps else now._replace(step=steps, requested=False))

    def _report_change(self, began: float) -> None:
        comm, counts = self.comm, self._counts
        change = MembershipChange(
            step=max(counts.steps, self.level),
            committed=counts.committed,
            rounds=counts.rounds,
            epoch=comm.epoch,
            sources=comm.sources,
            names=comm.names,
            rank=comm.rank,
            newcomer=self.newcomer,
            states=tuple(fragment.state._replace(**fields.tensors(fragment.state)) for fragment in self.fragments),
            seconds=comm.clock() - began,
        )
        self._events.append(change)
        if fault_points.watched():
            fault_points.reach(fault_points.MEMBERSHIP_CHANGED, change=change, x=self._replica.flat.read())


def _packed(event: Event) -> dict[str, Any]:
    """Return what a newcomer needs to know of what happened before it came."""
    if isinstance(event, Round):
        calls = {name: [tuple(call) for call in getattr(event, name)] for name in ("calls", "followed")}
        return {**dataclasses.asdict(event), **calls, "decision": [*event.decision]}
    counts = {name: getattr(event, name) for name in ("step", "committed", "rounds", "epoch")}
    return {**counts, "sources": list(event.sources), "names": list(event.names)}


def _unpacked(packed: dict[str, Any]) -> Event:
    if "number" in packed:
        plain: dict[str, Any] = {
            **packed,
            **{name: tuple(map(tuple, packed[name])) for name in ("calls", "followed")},
            "distrusted": tuple(Distrust(**worker) for worker in packed["distrusted"]),
            "decision": Decision(*packed["decision"]),
        }
        return Round(**plain)
    return MembershipChange(
        **{name: int(packed[name]) for name in ("step", "committed", "rounds", "epoch")},
        sources=tuple(packed["sources"]),
        names=tuple(packed["names"]),
        rank=-1,
        newcomer=True,
        states=(),
        seconds=0.0,
    )


def _is_newcomer(comm: Group) -> bool:
    return bool(comm.sources) and comm.sources[comm.rank] is None
