"""The contract of a trigger."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

from swarmstep.signal import Layout, Signal


class NoState(NamedTuple):
    """The state of what remembers nothing."""


class When(ABC):
    """Decides whether a round starts after this step.

    Concrete triggers are final frozen dataclasses of hyper-parameters; what they remember is a NamedTuple of
    tensors that the Synchronizer keeps. A trigger never communicates: where `voting` is False the answer must
    follow from what all ranks share (the step, the learning rate); where it is True each rank answers for
    itself, the Synchronizer calls the roll at every step, and one wish makes all synchronize.
    """

    @property
    def voting(self) -> bool:
        """Whether each rank answers for itself."""
        return False

    @property
    def period(self) -> int:
        """Steps between rounds where that is fixed, else 0."""
        return 0

    def init(self, layout: Layout, size: int) -> NamedTuple:
        """Return the state before step 1, for a group of `size` workers.

        Each field is annotated as in `swarmstep.signal`: a change of membership carries it over by that.
        """
        return NoState()

    @abstractmethod
    def due(self, state: NamedTuple, signal: Signal) -> bool:
        """Return whether (this rank wishes that) a round starts now; called exactly once a step.

        May change the tensors of `state` in place.
        """

    def warm_up(self, step: int) -> bool:
        """Return whether a round at this step is a plain mean, whatever the strategy."""
        return False
