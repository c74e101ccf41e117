"""The contract of a trigger."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Generic, NamedTuple

from typing_extensions import TypeVar

from swarmstep.arguments import Checked
from swarmstep.signal import Layout, Signal

TriggerState = TypeVar("TriggerState", bound=NamedTuple, default=Any)


class NoState(NamedTuple):
    """The state of a trigger or strategy that remembers nothing."""


class When(Checked, ABC, Generic[TriggerState]):
    """Decides whether a round starts after a local step.

    Concrete triggers are final frozen dataclasses of hyper-parameters. What a trigger remembers is a NamedTuple
    of tensors, its `TriggerState`, which the Synchronizer keeps and saves. A trigger never communicates. Where
    `voting` is False, its answer must follow from what all ranks share (step counts, the learning rate). Where it
    is True, each rank answers for itself: the Synchronizer then calls the roll at every step, and a round starts
    if any rank asks for one.
    """

    @property
    def voting(self) -> bool:
        """Whether each rank answers for itself."""
        return False

    @property
    def period(self) -> int:
        """The number of steps between rounds if it is fixed and the same on all ranks, else 0."""
        return 0

    @property
    def per_rank(self) -> bool:
        """Whether the ranks may count different numbers of steps between rounds."""
        return False

    @property
    def timed(self) -> bool:
        """Whether each worker opens a round by its own clock, after any number of its own steps.

        An elastic group then counts its rounds as steps, and begins one when all members want it.
        """
        return False

    @abstractmethod
    def init(self, layout: Layout, size: int) -> TriggerState:
        """Return the state before step 1, for a group of `size` workers.

        Each field is annotated as in `swarmstep.ownership`, so that it can be carried over when the membership
        of the group changes.
        """

    def count(self, state: TriggerState) -> int:
        """Return by how many steps the run's count goes on with this worker's next step, before `due` is asked."""
        return 1

    @abstractmethod
    def due(self, state: TriggerState, signal: Signal) -> bool:
        """Return whether a round starts now or, if voting, whether this rank asks for one.

        Called exactly once a step. May change the tensors of `state` in place.
        """
