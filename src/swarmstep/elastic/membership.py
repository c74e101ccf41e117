"""Which workers train together: they join, are lost and come back, and form one group after another."""

from __future__ import annotations

import contextlib
import os
import time
import warnings
from collections.abc import Callable
from typing import TypeVar

from swarmstep import fault_points
from swarmstep.comm import process_groups
from swarmstep.comm.dist import DistComm
from swarmstep.comm.epoch import Epoch
from swarmstep.comm.secure.auth import prove, secret_of
from swarmstep.comm.store import Address, store_at
from swarmstep.elastic.commit_vote import CommitVote
from swarmstep.elastic.formation import POLL, Formation
from swarmstep.elastic.keys import (
    CONCLUDED,
    FINISH,
    OVER,
    STOP,
    candidates_key,
    forming_key,
    group_key,
    saved_key,
    vote_key,
    wanted_key,
)
from swarmstep.elastic.retention import remove_old
from swarmstep.elastic.store_link import StoreLink
from swarmstep.elastic.wishes import Wishes
from swarmstep.errors import CommError, PeerLost, UsageError
from swarmstep.waiting import Wait

T = TypeVar("T")

VARIABLES = ("SWARMSTEP_STORE", "SWARMSTEP_WORKER", "SWARMSTEP_WORKERS")


class Membership:
    """One worker's membership in groups that outlive their members.

    A group loses a member when its connection closes, when whoever started it reports it dead, or when it sends no
    heartbeat for `silence` seconds. The survivors, and the workers that wait, then form the next group, in the
    same processes; a worker that was wrongly taken for lost comes back as a newcomer.

    Args:
        address: of the store.
        name: of this process; unique, also among those that have died.
        start: how many workers start together.
        silence: seconds without a heartbeat after which a worker counts as lost, at least 1.
        patience: seconds to wait for a worker that is alive, and for the store.
        exact: as in `DistComm`.
        secret: that all members of a group prove to each other before they begin (None: they do not).

    Attributes:
        resumes: whether workers that begin anew load a checkpoint, as they do where all that held the newest
            weights are dead. If not (the default), those who hold older weights go on with them.

    Raises:
        CommError: the store cannot be reached.
    """

    def __init__(
        self,
        address: Address,
        name: str,
        *,
        start: int = 1,
        silence: float = 5.0,
        patience: float = 1800.0,
        exact: bool = False,
        secret: bytes | None = None,
    ) -> None:
        self.resumes = False
        self.name = name
        self.silence, self.patience, self.exact = silence, patience, exact
        self._secret = secret
        self._votes: list[CommitVote] = []
        self.link = StoreLink(address, name, patience)
        self.formation = Formation(self.link, start, silence, self._admitted)
        self._wishes = Wishes(self.link, patience)

    @classmethod
    def from_env(cls, *, silence: float = 5.0, patience: float = 1800.0, exact: bool = False) -> Membership:
        """Return the membership of a worker that `swarmstep run` has started.

        Args:
            silence: as in the class.
            patience: as in the class.
            exact: as in the class.

        Raises:
            UsageError: this process was started by something else.
            CommError: the store cannot be reached.
        """
        missing = [name for name in VARIABLES if name not in os.environ]
        if missing:
            raise UsageError(
                f"Membership.from_env: {', '.join(missing)} not set in the environment; start the program with "
                "swarmstep run --workers W PROGRAM.py"
            )
        store, worker, workers = (os.environ[name] for name in VARIABLES)
        return cls(
            store_at(store),
            worker,
            start=int(workers),
            silence=silence,
            patience=patience,
            exact=exact,
            secret=secret_of(os.environ),
        )

    def _admitted(self) -> set[str] | None:
        """Return the names of those who may be in the next group; None: all candidates."""
        return None

    @property
    def epoch(self) -> int:
        """The last epoch whose group this worker knows, -1 before the first."""
        return self.formation.epoch

    @property
    def mark(self) -> str:
        """An identifier of the present group, unique among all runs; the same on all its members."""
        return f"{self.link.run}.{self.epoch}"

    def join(self) -> DistComm:
        """Return the first group that this worker is in: at once at the start, else after the next round.

        Raises:
            CommError: none was formed within `patience` seconds.
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
        with Wait(f"a group after group {self.epoch}"):
            return self._renewed(deadline)

    def _renewed(self, deadline: float) -> DistComm:
        votes, self._votes = self._votes, []
        for vote in votes:
            with Wait("the store, to give up a vote"), contextlib.suppress(PeerLost):  # nobody learns of it, then
                vote.close()
        process_groups.dissolve()
        while time.monotonic() < deadline:
            self.link.reopen_if_silent(self.formation.members)
            try:
                comm = self._try_once(deadline)
            except RuntimeError:  # a worker was lost meanwhile, or the store
                process_groups.dissolve()
                comm = None
                time.sleep(POLL)
            if comm:
                return comm
        raise CommError(
            f"worker {self.name}: no group was formed within {self.patience:g} s; to wait longer, raise patience "
            "(--patience SECONDS)"
        )

    def _try_once(self, deadline: float) -> DistComm | None:
        """Try to form the next group; None if it was decided without this worker, or the deadline has passed.

        Raises:
            RuntimeError: it could not be formed.
        """
        number = self.formation.register()
        members = self.formation.await_members(number, deadline, resumes=self.resumes)
        if members is None:
            return None
        names = self.formation.members
        if self.name not in names:
            return None  # this worker came too late, or was taken for lost
        rank, size = names.index(self.name), len(names)
        limit = max(process_groups.FORM_TIMEOUT, process_groups.FORM_EACH * size, self.silence)
        store, heartbeat = self.link.store, self.link.heartbeat
        store.add(candidates_key(number + 1), 0)
        heartbeat.watch(names, forming_key(number + 1))
        fault_points.reach(fault_points.FORMING)
        with Wait(f"the members of group {number} to connect: {', '.join(names)}"):
            process_groups.form(store, group_key(number), (rank, size), limit, self.patience + 60)
        fault_points.reach(fault_points.FORMED)
        heartbeat.reset()
        self._prove(limit)
        fault_points.reach(fault_points.PROVEN)
        sources = tuple(member.source for member in members)
        begins = all(source is None for source in sources)
        epoch = Epoch(self, number, tuple(names), () if begins else sources)
        return DistComm(exact=self.exact, silence=self.silence, patience=self.patience, epoch=epoch)

    def _prove(self, limit: float) -> None:
        """Have all members prove that they know the secret; where one does not, the group is not formed."""
        if self._secret is None:
            return
        try:
            prove(DistComm(patience=limit), self._secret)
        except CommError as error:
            if not isinstance(error, PeerLost):
                warnings.warn(f"worker {self.name}: a group was given up: {error}", stacklevel=2)
            raise RuntimeError(str(error)) from error

    def trouble(self) -> str | None:
        """Return why waiting for the present group makes no sense, or None if it does."""
        return self.link.trouble(self.silence)

    def meets(self, number: int, wanted: bool) -> bool:
        """Return whether all members of the present group want a round; as `Group.meets`."""
        return wanted and self._wishes.meet(wanted_key(self.epoch, number), len(self.formation.members))

    def vote(self, part: str, size: int, *, first: bool) -> CommitVote:
        """Return what decides in the present group, or a part of it.

        Args:
            part: its name in this epoch, the same on all its ranks.
            size: of the part.
            first: whether its first decision is that the group has begun.
        """
        number, members = self.epoch, self.formation.members
        rank = members.index(self.name)

        def entered() -> None:
            self.formation.held = number, rank
            if rank == 0:
                with contextlib.suppress(RuntimeError):  # it stays, then
                    remove_old(self.link.store, number, members)

        requests = [candidates_key(number + 1), STOP, FINISH]
        vote = CommitVote(self.link.connect, vote_key(number, part), size, requests, *([entered] if first else []))
        self._votes.append(vote)
        return vote

    def saved_by_all(self, step: int) -> int:
        """Report the step of this worker's newest checkpoint; return the oldest that the members have reported.

        0 where a member has not reported any.
        """
        store = self.link.store
        store.set(saved_key(self.name), str(step))
        keys = [saved_key(name) for name in self.formation.members]
        return min(int(value) for value in store.multi_get(keys)) if store.check(keys) else 0

    def leads(self) -> bool:
        """Return whether all members of the present group before this one are lost."""
        lost, names = self.link.lost(self.silence), self.formation.members
        return all(name in lost for name in names[: names.index(self.name)])

    def end(self) -> None:
        """Report that the run is over: workers that are not in the group will not be needed any more."""
        with contextlib.suppress(RuntimeError):
            self.link.store.add(OVER, 1)

    def conclude(self, task: Callable[[], T]) -> T | None:
        """Run what one member does for all at the end; return its result on that member, None on the others.

        The first rank runs it; if it is lost before it is done, the next one does. Once it is done the run is
        over, as after `end`; if all are lost before, those who are started again begin as after any loss of all.

        Raises:
            CommError: it is not done within `patience` seconds, or the store cannot be reached.
        """
        link, deadline = self.link, time.monotonic() + self.patience
        with Wait(f"the first of {', '.join(self.formation.members)} to conclude the run"):
            while not link.reached(lambda: link.store.add(CONCLUDED, 0)):
                if link.heartbeat.error:  # nothing is learnt any more of those before this one
                    link.reopen_if_silent(self.formation.members)
                if self.leads():
                    break
                if time.monotonic() > deadline:
                    raise CommError(
                        f"worker {self.name}: waited {self.patience:g} s for the first rank to conclude the run; "
                        "to wait longer, raise patience (--patience SECONDS)"
                    )
                time.sleep(POLL)
            else:
                return None
        result = task()
        self.end()
        link.reached(lambda: link.store.add(CONCLUDED, 1))
        return result

    def leave(self) -> None:
        """Leave for good; the others, if there are any, go on."""
        self._wishes.end()
        self.link.heartbeat.stop()
        process_groups.dissolve()
