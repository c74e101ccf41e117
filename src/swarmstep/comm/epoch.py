"""What makes a group one of a series that outlives its members; `swarmstep.elastic` provides it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Protocol

from swarmstep.comm.group import Decision, Group


class Vote(Protocol):
    """What decides whether a round counts: `swarmstep.elastic.commit_vote.CommitVote`."""

    def decide(self, check: Callable[[float], None]) -> Decision: ...
    def close(self) -> None: ...


class Members(Protocol):
    """The part of `swarmstep.elastic.membership.Membership` that a group needs."""

    @property
    def mark(self) -> str: ...
    def saved_by_all(self, step: int) -> int: ...
    def trouble(self) -> str | None: ...
    def renew(self) -> Group: ...
    def meets(self, number: int, wanted: bool) -> bool: ...
    def vote(self, part: str, size: int, *, first: bool) -> Vote: ...


@dataclasses.dataclass(frozen=True)
class Epoch:
    """One group of a series.

    Args:
        membership: of this process, which forms the groups.
        number: the `epoch` of `Group`.
        names: as in `Group`.
        sources: as in `Group`.
    """

    membership: Members
    number: int
    names: tuple[str, ...]
    sources: tuple[int | None, ...]
