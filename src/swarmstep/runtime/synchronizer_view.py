"""What a Synchronizer tells of itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

from torch import Tensor, nn

from swarmstep.comm.group import Group
from swarmstep.runtime.as_finished import as_finished, kept
from swarmstep.runtime.replica import Replica
from swarmstep.runtime.rounds import Rounds

T = TypeVar("T")


class SynchronizerView:
    """How far a Synchronizer is, with whom, and what the result would be now.

    Args:
        replica: its model, and how it is synchronized.
        comm: its first group.

    Attributes:
        strategy: that it was given.
        options: that it was given, or the default ones.
    """

    def __init__(self, replica: Replica, comm: Group) -> None:
        self.strategy, self.options = replica.strategy, replica.options
        self._replica, self._rounds = replica, Rounds(replica, comm)
        self._result_loaded = False  # into the model

    @property
    def model(self) -> nn.Module:
        """The module that is trained."""
        return self._replica.model

    @property
    def steps(self) -> int:
        """How many local steps this worker has taken; with `Balanced`, those of an equal worker."""
        return self._rounds.counts.steps

    @property
    def rounds(self) -> int:
        """How many rounds of the run have landed."""
        return self._rounds.counts.rounds

    @property
    def committed(self) -> int:
        """The step at which the last round that counts started."""
        return self._rounds.counts.committed

    @property
    def comm(self) -> Group:
        """The group that this worker is in; in an elastic run it changes between rounds."""
        return self._rounds.group.comm.bare

    @property
    def newcomer(self) -> bool:
        """Whether this worker joined others in the present group."""
        return self._rounds.group.newcomer

    @property
    def states(self) -> tuple[NamedTuple, ...]:
        """The strategy's state for each fragment of the model; to be looked at only."""
        return tuple(fragment.state for fragment in self._rounds.group.fragments)

    @property
    def triggers(self) -> tuple[NamedTuple, ...]:
        """The trigger's state for each fragment of the model."""
        return tuple(fragment.trigger for fragment in self._rounds.group.fragments)

    @property
    def bytes_sent(self) -> int:
        """Payload this worker has sent in bytes, including the start and the end."""
        return sum(traffic.sent for traffic in self._rounds.group.traffic)

    @property
    def bytes_received(self) -> int:
        """Payload this worker has received in bytes, including the start and the end."""
        return sum(traffic.received for traffic in self._rounds.group.traffic)

    @property
    def under_way(self) -> bool:
        """Whether a round is under way in the background; the same on all ranks."""
        return any(fragment.pending for fragment in self._rounds.group.fragments)

    def result(self) -> Tensor:
        """Return the model as `finish` would leave it now, as a flat vector: all parameters, then all buffers.

        Collective; changes nothing. What is under way is not in it.
        """
        return self._replica.flat.in_plain_order(self._rounds.result())

    def evaluate(self, function: Callable[[nn.Module], T]) -> T:
        """Return what a function returns of the model as `finish` would leave it now, if all called it.

        Afterwards model, rounds and torch's global random numbers are as they were, bit for bit; modules may be
        put into `eval` mode meanwhile. A round under way lands for the time of the call only. Every rank calls it
        between two steps, with all others. In an elastic group, where a collective outside of a round cannot be
        repeated, nobody waits for the others, and the model is this worker's own as it is.

        Args:
            function: is given the model; it may change what it likes, but must not take a step.

        Raises:
            CommError: as in `step`; the model is as it was.
        """
        if self._result_loaded or self.comm.elastic:
            with kept(self._replica.model):
                return function(self._replica.model)
        with as_finished(self._replica, self._rounds):
            return function(self._replica.model)
