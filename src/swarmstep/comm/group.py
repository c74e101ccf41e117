"""The life of a group, as the runtime drives it: committing rounds, forming the next group, background tasks."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import NamedTuple

from swarmstep.comm.background import BackgroundTask, Pending, T
from swarmstep.comm.base import Comm
from swarmstep.errors import UsageError


class Decision(NamedTuple):
    """What a group decides about a round that counts; the same on all ranks.

    `renew`: newcomers are waiting, so the next group is formed before the next round; `stop`: a stop was
    requested; `finish`: a finish was requested, as if all steps had been taken.
    """

    renew: bool = False
    stop: bool = False
    finish: bool = False


KEPT = Decision()  # the round counts, and nothing was requested


def not_elastic(group: Group) -> UsageError:
    """Return what `renew` raises where a lost worker ends the run."""
    return UsageError(f"{type(group).__name__}: this group is not elastic; a lost worker ends the run")


class Group(Comm):
    """A `Comm` with a life of its own: what the runtime drives, beyond the verbs that a strategy sees.

    Every member is abstract, so that a wrapper cannot inherit a default where it should delegate.
    """

    @property
    @abstractmethod
    def elastic(self) -> bool:
        """Whether the group outlives a lost member: `renew` then returns the next group."""

    @property
    @abstractmethod
    def epoch(self) -> int:
        """The number of this group in its series, from 0."""

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """The members' names, in rank order, where they have names that outlive their ranks; else empty."""

    @property
    @abstractmethod
    def sources(self) -> tuple[int | None, ...]:
        """For each rank, its rank in the group before this one, None for a newcomer; empty if all begin."""

    @abstractmethod
    def elapse(self, seconds: float) -> None:
        """Let time pass, to play a slower worker: real processes sleep, virtual time moves."""

    @abstractmethod
    def split(self, color: int, name: str = "") -> Group:
        """As in `Comm`; decisions and background tasks of the part belong to the same series of groups."""

    @abstractmethod
    def decide(self) -> Decision:
        """Decide whether the round counts: on all ranks, or on none. Call it after all collectives of the round.

        Where a lost peer ends the run, there is nothing to decide: the round counts.

        Raises:
            PeerLost: the round does not count; on all ranks.
        """

    @abstractmethod
    def meets(self, number: int, wanted: bool) -> bool:
        """Return whether a round begins now that each member may want at another time.

        In an elastic group: once all members have wanted it; this member's wish is made known and stays. Else
        where this member wants it. Waits for nobody.

        Args:
            number: of the round.
            wanted: whether this member wants it.
        """

    @property
    @abstractmethod
    def broken(self) -> bool:
        """Whether a member of an elastic group is known to be lost, or others have left it for the next."""

    @abstractmethod
    def renewal(self) -> BackgroundTask[Group]:
        """Start `renew` in the background. Until it is done no verb of this group may be called.

        Raises:
            UsageError: this group is not elastic.
        """

    @abstractmethod
    def renew(self) -> Group:
        """Wait for the background tasks, and return the next group: the survivors, and those waiting to join.

        Raises:
            CommError: no group could be formed.
            UsageError: this group is not elastic.
        """

    @abstractmethod
    def start(self, task: Callable[[], T]) -> Pending[T]:
        """Start a task that calls verbs of this group, and of no other; it runs in the background if there is one.

        Tasks of one group run one after another, in the order in which they were started. In simulation the task
        has run when this returns: what it computes does not depend on when it runs.
        """

    @abstractmethod
    def settle(self) -> None:
        """Wait, for a limited time, until the background tasks of this group and of its parts have ended."""

    @abstractmethod
    def reusing(self) -> Group:
        """Return this group for an owner who calls `recycle`: results of its verbs are valid only until then."""

    @abstractmethod
    def recycle(self) -> None:
        """Let the memory of everything that the verbs have returned be reused."""


class InProcessGroup(Group):
    """A group within one process: nobody is lost, nothing runs in the background, all results are new tensors."""

    @property
    def elastic(self) -> bool:
        return False

    @property
    def epoch(self) -> int:
        return 0

    @property
    def names(self) -> tuple[str, ...]:
        return ()

    @property
    def sources(self) -> tuple[int | None, ...]:
        return ()

    def decide(self) -> Decision:
        return KEPT

    def meets(self, number: int, wanted: bool) -> bool:
        return wanted

    @property
    def broken(self) -> bool:
        return False

    def renewal(self) -> BackgroundTask[Group]:
        raise not_elastic(self)

    def renew(self) -> Group:
        raise not_elastic(self)

    def settle(self) -> None:
        """Nothing is under way: a task has run when `start` returns."""

    def reusing(self) -> Group:
        return self

    def recycle(self) -> None:
        """Nothing is reused: all results are new tensors."""
