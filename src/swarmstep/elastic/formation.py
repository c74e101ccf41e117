"""How workers agree on the next group: candidates register, and the first to see a complete choice proposes it."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from swarmstep import fault_points
from swarmstep.comm.heartbeat import dead_key
from swarmstep.comm.store import Store, peek
from swarmstep.elastic.commit_vote import COMMIT, first_verdict
from swarmstep.elastic.keys import OVER, STOP, candidates_key, forming_key, members_key, vote_key
from swarmstep.elastic.retention import began, kept, members_of
from swarmstep.elastic.store_link import StoreLink
from swarmstep.errors import RunOver
from swarmstep.waiting import Wait

START_WAIT = 60.0  # seconds that the first workers wait for those who should start with them
RESTART_WAIT = 10.0  # the same where all were lost, and those who are started again begin anew
POLL = 0.02  # seconds between two looks at the store


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A worker that wants to be in the next group.

    `held`: its (epoch, rank) in the group whose state it holds, None for a newcomer.
    """

    name: str
    held: tuple[int, int] | None


class Member(NamedTuple):
    """A member of a group: its name, and its rank in the group whose state it holds, None for a newcomer."""

    name: str
    source: int | None


class Formation:
    """One worker's part in agreeing on one group after another.

    Args:
        link: to the store.
        start: how many workers start together.
        silence: seconds without a heartbeat after which a worker counts as lost.
        admitted: returns the names of those who may be in the next group (None: all).

    Attributes:
        epoch: the last one whose group this worker knows, -1 before the first.
        members: the names of that group's members.
        held: this worker's (epoch, rank) in the group whose state it holds, None for a newcomer.
    """

    def __init__(
        self, link: StoreLink, start: int, silence: float, admitted: Callable[[], set[str] | None]
    ) -> None:
        self._link = link
        self._start, self._silence, self._admitted = start, silence, admitted
        self.epoch = -1
        self.members: list[str] = []
        self.held: tuple[int, int] | None = None
        self._awaited = ""  # who has to come before the next group can be chosen

    def register(self) -> int:
        """Register this worker as a candidate for the next group, and return that group's epoch."""
        fault_points.reach(fault_points.REGISTERING)
        store, name = self._link.store, self._link.name
        self.epoch = max(self.epoch, kept(store)[-1] - 1)
        while store.check([members_key(self.epoch + 1)]):
            self.epoch += 1
            self.members = [member.name for member in self._decided(self.epoch)]
        number = self.epoch + 1
        key = candidates_key(number)
        place = store.add(key, 1)
        fault_points.reach(fault_points.REGISTERED_PLACE)
        store.set(f"{key}/{place}", json.dumps([name, self.held]))
        if name in self.members:
            store.add(forming_key(number), 1)
        self._link.heartbeat.watch(self.members)
        fault_points.reach(fault_points.REGISTERED)
        return number

    def await_members(self, number: int, deadline: float, *, resumes: bool) -> list[Member] | None:
        """Return the members of a group once they are decided, and note them.

        None if the deadline has passed, or the others are further on.

        Args:
            number: the group's epoch.
            deadline: until when to wait, by `time.monotonic`.
            resumes: as in `Membership`.

        Raises:
            RunOver: this worker is in no group, and the run is over.
            RuntimeError: the store does not answer, or has not answered a heartbeat.
        """
        store, key, began = self._link.store, members_key(number), time.monotonic()
        with Wait("") as wait:
            while not store.check([key]):
                if time.monotonic() > deadline:
                    return None
                if self._passed(number):
                    return None
                if error := self._link.heartbeat.error:  # nothing is learnt of the others any more
                    raise RuntimeError(f"the heartbeats have ended: {error}")
                chosen = self.choose(number, time.monotonic() - began, resumes=resumes)
                wait.what = f"the members of group {number}: {self._awaited}"
                # Looked at after the choice: members that have ended in peace have said before that it is over.
                if self._link.name not in self.members and (store.add(OVER, 0) or store.add(STOP, 0)):
                    raise RunOver(f"worker {self._link.name}: the run is over; there is nothing left to do")
                if chosen:
                    fault_points.reach(fault_points.CHOOSING)
                    store.compare_set(key, "", json.dumps(chosen))
                else:
                    time.sleep(POLL)
        members = self._decided(number)
        if self._passed(number):  # its keys were removed, perhaps, before somebody late has decided it once more
            return None
        self.epoch, self.members = number, [member.name for member in members]
        return members

    def _passed(self, number: int) -> bool:
        """Return whether a later group has begun than that of an epoch."""
        return kept(self._link.store)[-1] > number

    def _decided(self, number: int) -> list[Member]:
        members = members_of(self._link.store, number)
        if not members:
            raise RuntimeError(f"the others are further on than epoch {number}")
        return [Member(name, source) for name, source in members]

    def choose(self, number: int, waited: float, *, resumes: bool = False) -> list[Member]:
        """Return who should be in the next group; an empty list as long as others should be waited for.

        Those who hold the newest state come first, in their order, then the others, in the order of registration.

        Args:
            number: the group's epoch.
            waited: seconds since this worker registered.
            resumes: as in `Membership`.
        """
        candidates = self._candidates(number)
        names = [candidate.name for candidate in candidates]
        self._link.heartbeat.watch([*self.members, *(name for name in names if name not in self.members)])
        lost = self._link.lost(self._silence)
        missing = [name for name in self.members if name not in names and name not in lost]
        if missing:
            self._awaited = f"{', '.join(missing)} of the last group, to register"
            return []
        candidates = [candidate for candidate in candidates if candidate.name not in lost]
        newest = self._newest(number, resumes)
        holders = [(c.held, c.name) for c in candidates if c.held and c.held[0] == newest]
        if holders:
            holding = [Member(name, rank) for (_, rank), name in sorted(holders)]
            known = {member.name for member in holding}
            return holding + [Member(c.name, None) for c in candidates if c.name not in known]
        if newest >= 0:  # somebody holds newer weights than all who are here, and may come back
            self._awaited = f"one of group {newest}, who hold the newest weights"
            return []
        candidates = [c for c in candidates if not c.held]  # the others join these once they have begun
        self._awaited = f"{self._start} workers to begin, of whom {len(candidates)} are here"
        if len(candidates) < self._start and waited < (RESTART_WAIT if number else START_WAIT):
            return []
        return [Member(name, None) for name in sorted(c.name for c in candidates)]

    def _candidates(self, number: int) -> list[Candidate]:
        admitted = self._admitted()
        store, key = self._link.store, candidates_key(number)
        places = [f"{key}/{place}" for place in range(1, store.add(key, 0) + 1)]
        rows: dict[str, Any] = dict(
            json.loads(row) for place in places if (row := peek(store, place))
        )  # once each
        candidates = [Candidate(name, tuple(held) if held else None) for name, held in rows.items()]
        return [c for c in candidates if admitted is None or c.name in admitted]

    def _newest(self, number: int, resumes: bool) -> int:
        """Return the last epoch that has begun and whose members are not all dead: they hold the newest weights.

        -1: there is none, or it precedes a checkpoint. A group that has not begun by now never will: members that
        were taken for lost, and are not, may be about to begin it, and there must not be two swarms.
        """
        earlier = kept(self._link.store)
        for epoch in reversed([*earlier, *range(earlier[-1] + 1, number)]):
            if epoch < number and self._began(epoch):
                if not all(self._link.store.add(dead_key(member.name), 0) for member in self._decided(epoch)):
                    return epoch
                if resumes:
                    return -1
        return -1

    def _began(self, number: int) -> bool:
        """Return whether a group has begun; if not, see to it that it never does."""
        return began(self._link.store, number)


def begun(store: Store) -> bool:
    """Return whether a group of the run that meets in this store has begun to train."""
    number = kept(store)[-1]
    while store.check([members_key(number)]):
        first = first_verdict(vote_key(number))
        if store.check([first]) and store.get(first).decode().startswith(COMMIT):
            return True
        number += 1
    return False
