"""Who trains together: workers that join, are lost, and come back, and the groups they form one after another.

Everything is agreed upon in one store, which lives in a process that is no worker. The keys, below "swarmstep/":

::

    alive/NAME               beats of a worker           (heartbeat.py)
    dead/NAME                above 0: it has died        (set by whoever started it)
    stop, finish, over       what was asked for; that the run is over
    saved/NAME               its newest checkpoint
    run                      what tells this run from all others
    epoch/E/here, here/I     who wants to be in the group of epoch E, in the order in which they came
    epoch/E/open             above 0: members of the group before have begun to form this one
    epoch/E/members          the group, decided by one compare-and-set
    epoch/E/ballot/...       its decisions; the first is that it has begun: weights and state are where they
                             belong                      (ballot.py)
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import secrets
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from swarmstep import fault_points
from swarmstep.comm import process_groups
from swarmstep.comm.dist import DistComm
from swarmstep.comm.epoch import Epoch
from swarmstep.comm.heartbeat import Heartbeat, dead_key
from swarmstep.comm.secure.auth import prove, secret_of
from swarmstep.comm.torch_private import TCPStore
from swarmstep.elastic.commit_vote import ABORT, COMMIT, CommitVote, first_verdict
from swarmstep.errors import CommError, PeerLost, RunOver, UsageError

T = TypeVar("T")

PERIOD = 0.2  # seconds between two signs of life
GATHERING = 60.0  # seconds that the first workers wait for those who should start with them
RETURNING = 10.0  # the same where all have been lost, and those that are started again begin anew
POLL = 0.02  # seconds between two looks at the store
STOP, FINISH, OVER = "swarmstep/stop", "swarmstep/finish", "swarmstep/over"


@dataclasses.dataclass(frozen=True)
class Candidate:
    """Who wants to be in the next group: a worker's name, and its place (epoch, rank) in the group whose state it
    holds, None for a newcomer."""

    name: str
    held: tuple[int, int] | None


class Membership:
    """One worker's part in groups that outlive their members.

    A group loses a member when its connection closes, when whoever started it says that it is dead, or when it
    gives no sign of life for `silence` seconds. Those who are left, and those who wait, then form the next group,
    in the same processes; whoever was taken for lost and is not comes back as a newcomer.

    Args:
        address: (host, port) of the store.
        name: of this process: no other has or had it.
        start: how many workers start together.
        silence: seconds without a sign of life after which a worker counts as lost, at least 1.
        patience: seconds to wait for a worker that is alive, and for the store.
        exact: as in `DistComm`.
        secret: that all members of a group prove to each other before they begin (None: they do not).

    Attributes:
        resumes: whether workers that begin anew load a checkpoint, as they do where all that held the newest
            weights are dead. If they do not, somebody who holds older ones counts then.

    Raises:
        CommError: the store cannot be reached.
    """

    def __init__(
        self,
        address: tuple[str, int],
        name: str,
        *,
        start: int = 1,
        silence: float = 5.0,
        patience: float = 1800.0,
        exact: bool = False,
        secret: bytes | None = None,
    ) -> None:
        self.resumes = False
        self.address, self.name, self.start = address, name, start
        self.silence, self.patience, self.exact = silence, patience, exact
        self._secret = secret
        self.epoch = -1  # the last one that is known to be decided
        self._members: list[str] = []  # of that epoch
        self._held: tuple[int, int] | None = None
        self._ballots: list[CommitVote] = []
        self._reached(self._connect_all)

    @classmethod
    def from_env(cls, *, silence: float = 5.0, patience: float = 1800.0, exact: bool = False) -> Membership:
        """Return the part of a worker that `swarmstep run` has started.

        Args:
            silence: as in the class.
            patience: as in the class.
            exact: as in the class.

        Raises:
            UsageError: this process was started by something else.
            CommError: the store cannot be reached.
        """
        names = ("SWARMSTEP_STORE", "SWARMSTEP_WORKER", "SWARMSTEP_WORKERS")
        missing = [name for name in names if name not in os.environ]
        if missing:
            raise UsageError(
                f"Membership.from_env: {', '.join(missing)} not set in the environment; start the program with "
                "swarmstep run --workers W PROGRAM.py"
            )
        store, worker, workers = (os.environ[name] for name in names)
        host, _, port = store.rpartition(":")
        return cls(
            (host, int(port)),
            worker,
            start=int(workers),
            silence=silence,
            patience=patience,
            exact=exact,
            secret=secret_of(os.environ),
        )

    def _connect(self) -> TCPStore:
        return process_groups.connect(*self.address, self.patience)

    def _connect_all(self) -> None:
        self._store = self._connect()
        for key in (STOP, FINISH, OVER):
            self._store.add(key, 0)
        self._run = self._store.compare_set("swarmstep/run", "", secrets.token_hex(8)).decode()
        self._heart = Heartbeat(self._connect(), self.name, self._members, PERIOD)
        self._heart.start()

    def _reached(self, task: Callable[[], T]) -> T:
        try:
            return task()
        except RuntimeError as error:
            host, port = self.address
            raise CommError(
                f"worker {self.name}: the store at {host}:{port} cannot be reached: "
                f"{process_groups.brief(error)}; the process that started the run has probably ended"
            ) from error

    def join(self) -> DistComm:
        """Return the first group that this worker is in: at once at the start, else after the next round.

        Raises:
            CommError: none has been formed within `patience`.
            RunOver: the others have taken all steps.
        """
        return self.renew()

    def renew(self) -> DistComm:
        """Return the next group; the present one, if any, ends.

        Raises:
            CommError, RunOver: as in `join`.
        """
        fault_points.reach(fault_points.LEAVING)
        deadline = time.monotonic() + self.patience
        ballots, self._ballots = self._ballots, []
        for ballot in ballots:
            with contextlib.suppress(PeerLost):  # the store does not answer: nobody learns anything
                ballot.close()
        process_groups.dissolve()
        while time.monotonic() < deadline:
            self._wake()
            try:
                comm = self._try_once(deadline)
            except RuntimeError:  # somebody was lost meanwhile, or the store
                process_groups.dissolve()
                comm = None
                time.sleep(POLL)
            if comm:
                return comm
        raise CommError(
            f"worker {self.name}: no group was formed within {self.patience:g} s; a longer wait is set with "
            "patience (--patience SECONDS)"
        )

    def _wake(self) -> None:
        """Connect to the store anew where it does not answer: after a cut, a connection sleeps on for as long."""
        if self._heart.error or self._heart.store_silent(2 * PERIOD):
            self._heart.stop(wait=0.0)
            self._reached(self._connect_all)

    def _try_once(self, deadline: float) -> DistComm | None:
        number = self._register()
        rows = self._await_members(number, deadline)
        if rows is None:
            return None
        self.epoch, self._members = number, [name for name, _ in rows]
        if self.name not in self._members:
            return None  # it was decided without this one, which came too late, or was taken for lost
        rank = self._members.index(self.name)
        following = self._key(number + 1)
        self._store.add(f"{following}/here", 0)
        self._heart.watch(self._members, f"{following}/open")
        limit = max(process_groups.FORM_TIMEOUT, self.silence)
        fault_points.reach(fault_points.FORMING)
        process_groups.form(
            self._store, f"{self._key(number)}/group", (rank, len(rows)), limit, self.patience + 60
        )
        fault_points.reach(fault_points.FORMED)
        self._heart.reset()
        self._prove(limit)
        fault_points.reach(fault_points.PROVEN)
        begins = all(source is None for _, source in rows)
        return DistComm(
            exact=self.exact,
            silence=self.silence,
            patience=self.patience,
            epoch=Epoch(self, number, tuple(self._members), () if begins else tuple(source for _, source in rows)),
        )

    def _prove(self, limit: float) -> None:
        """Have all prove that they know the secret; a group where somebody does not has not been formed."""
        if self._secret is None:
            return
        try:
            prove(DistComm(patience=limit), self._secret)
        except CommError as error:
            if not isinstance(error, PeerLost):
                warnings.warn(f"worker {self.name}: a group was given up: {error}", stacklevel=2)
            raise RuntimeError(str(error)) from error

    def _key(self, number: int) -> str:
        return _key(number)

    def _register(self) -> int:
        """Say that this worker wants to be in the next group, and return its number."""
        fault_points.reach(fault_points.REGISTERING)
        while self._store.check([f"{self._key(self.epoch + 1)}/members"]):
            self.epoch += 1
            self._members = [name for name, _ in self._decided(self.epoch)]
        number = self.epoch + 1
        key = self._key(number)
        place = self._store.add(f"{key}/here", 1)
        fault_points.reach(fault_points.REGISTERED_PLACE)
        self._store.set(f"{key}/here/{place}", json.dumps([self.name, self._held]))
        if self.name in self._members:
            self._store.add(f"{key}/open", 1)
        self._heart.watch(self._members)
        fault_points.reach(fault_points.REGISTERED)
        return number

    def _decided(self, number: int) -> list[tuple[str, int | None]]:
        rows: list[list[Any]] = json.loads(self._store.get(f"{self._key(number)}/members"))
        return [(name, source) for name, source in rows]

    def _await_members(self, number: int, deadline: float) -> list[tuple[str, int | None]] | None:
        """Return (name, rank in the group whose state it holds) of the members of a group; None: out of time."""
        key, began = f"{self._key(number)}/members", time.monotonic()
        while not self._store.check([key]):
            if time.monotonic() > deadline:
                return None
            if self.name not in self._members and (self._store.add(OVER, 0) or self._store.add(STOP, 0)):
                raise RunOver(f"worker {self.name}: the run is over; nothing is left to do")
            chosen = self._choose(number, time.monotonic() - began)
            if chosen:
                fault_points.reach(fault_points.CHOOSING)
                self._store.compare_set(key, "", json.dumps(chosen))
            else:
                time.sleep(POLL)
        return self._decided(number)

    def _choose(self, number: int, waited: float) -> list[tuple[str, int | None]]:
        """Return who should be in the next group; nobody yet, if somebody may still come."""
        candidates = self._candidates(number)
        here = [candidate.name for candidate in candidates]
        self._heart.watch([*self._members, *(name for name in here if name not in self._members)])
        lost = self._lost()
        if any(name not in here and name not in lost for name in self._members):
            return []
        candidates = [candidate for candidate in candidates if candidate.name not in lost]
        newest = self._newest(number)
        holders = [c for c in candidates if c.held and c.held[0] == newest]
        if holders:
            holders.sort(key=lambda c: c.held or (0, 0))
            rest = [c.name for c in candidates if c not in holders]
            return [*((c.name, c.held[1] if c.held else None) for c in holders), *((name, None) for name in rest)]
        if newest >= 0:
            return []  # somebody holds newer weights than anybody here, and may come back
        candidates = [c for c in candidates if not c.held]  # others join these, once they have begun
        if len(candidates) < self.start and waited < (RETURNING if number else GATHERING):
            return []
        return [(name, None) for name in sorted(c.name for c in candidates)]

    def _candidates(self, number: int) -> list[Candidate]:
        key = f"{self._key(number)}/here"
        count = self._store.add(key, 0)
        places = [f"{key}/{place}" for place in range(1, count + 1)]
        rows = [json.loads(self._store.get(place)) for place in places if self._store.check([place])]
        return [Candidate(name, tuple(held) if held else None) for name, held in dict(rows).items()]  # each once

    def _newest(self, number: int) -> int:
        """Return the last epoch that has begun and whose members are not all dead; they hold the newest weights.

        -1: there is none, or what came before a checkpoint. What has not begun by now never will: whoever was
        taken for lost, and is not, may still be about to begin it, and there must not be two swarms.
        """
        for epoch in range(number - 1, -1, -1):
            if self._began(epoch):
                if not self._all_dead(epoch):
                    return epoch
                if self.resumes:
                    return -1
        return -1

    def _began(self, number: int) -> bool:
        verdict = self._store.compare_set(first_verdict(f"{self._key(number)}/ballot"), "", ABORT)
        return verdict.decode().startswith(COMMIT)

    def _all_dead(self, number: int) -> bool:
        return all(self._store.add(dead_key(name), 0) for name, _ in self._decided(number))

    def _lost(self) -> set[str]:
        return self._heart.dead() | {self._heart.name_of(rank) for rank in self._heart.silent(self.silence)}

    def trouble(self) -> str | None:
        """Return why there is nothing to wait for in the present group, if so."""
        heart = self._heart
        if heart.error or heart.store_silent(self.silence):
            why = process_groups.brief(heart.error) if heart.error else f"no answer for {self.silence:g} s"
            return f"the store is out of reach ({why})"
        if heart.flagged():
            return "others have begun to form the next group"
        if heart.dead():
            return f"{_named(heart.dead())} has died"
        silent = {heart.name_of(rank) for rank in heart.silent(self.silence)}
        return f"no sign of life from {_named(silent)} for {self.silence:g} s" if silent else None

    def vote(self, part: str, size: int, *, first: bool) -> CommitVote:
        """Return what decides in the present group, or a part of it.

        Args:
            part: its name in this epoch, the same on all its ranks.
            size: of the part.
            first: whether its first decision is that the epoch has begun.
        """
        key, epoch = self._key(self.epoch), self.epoch
        wishes = [f"{self._key(epoch + 1)}/here", STOP, FINISH]
        rank = self._members.index(self.name)

        def entered() -> None:
            self._held = (epoch, rank)

        ballot = CommitVote(self._connect, f"{key}/ballot{part}", size, wishes, *([entered] if first else []))
        self._ballots.append(ballot)
        return ballot

    @property
    def mark(self) -> str:
        """What tells the present group from all others, also those of other runs; the same on all its members."""
        return f"{self._run}.{self.epoch}"

    def saved_by_all(self, step: int) -> int:
        """Say of which step this worker has its newest checkpoint; return the oldest of what all members said.

        0 where somebody has not said anything yet.
        """
        self._store.set(f"swarmstep/saved/{self.name}", str(step))
        keys = [f"swarmstep/saved/{name}" for name in self._members]
        return min(int(said) for said in self._store.multi_get(keys)) if self._store.check(keys) else 0

    def leads(self) -> bool:
        """Return whether all members of the present group before this one are lost."""
        lost = self._lost()
        return all(name in lost for name in self._members[: self._members.index(self.name)])

    def end(self) -> None:
        """Say that the run is over: whoever is not in the group will not be needed any more."""
        with contextlib.suppress(RuntimeError):
            self._store.add(OVER, 1)

    def conclude(self, task: Callable[[], T]) -> T | None:
        """Run what one member does for all at the end; return its result there, None elsewhere.

        The first rank runs it; if it is lost before it is done, the next one does.

        Raises:
            CommError: it is not done within `patience`, or the store is gone.
        """
        key, deadline = "swarmstep/concluded", time.monotonic() + self.patience
        while not self._reached(lambda: self._store.add(key, 0)):
            if self.leads():
                result = task()
                self._reached(lambda: self._store.add(key, 1))
                return result
            if time.monotonic() > deadline:
                raise CommError(f"worker {self.name}: waited {self.patience:g} s for the first rank to conclude")
            time.sleep(POLL)
        return None

    def leave(self) -> None:
        """Leave for good; the others, if any are left, go on."""
        self._heart.stop()
        process_groups.dissolve()


def begun(store: TCPStore) -> bool:
    """Return whether some group of the run that meets in this store has begun to train."""
    number = 0
    while store.check([f"{_key(number)}/members"]):
        first = first_verdict(f"{_key(number)}/ballot")
        if store.check([first]) and store.get(first).decode().startswith(COMMIT):
            return True
        number += 1
    return False


def _key(number: int) -> str:
    return f"swarmstep/epoch/{number}"


def _named(names: Sequence[str] | set[str]) -> str:
    return f"worker{'s' if len(names) > 1 else ''} {', '.join(sorted(names))}"
