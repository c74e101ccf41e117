"""How a Synchronizer is saved and loaded, alone or with all else that a training loop goes on from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from swarmstep.comm.group import Group
from swarmstep.errors import CommError, UsageError
from swarmstep.runtime import own_checkpoint, synchronizer_state
from swarmstep.runtime.first_step import FirstStep
from swarmstep.runtime.options import Stateful
from swarmstep.runtime.replica import Replica
from swarmstep.runtime.synchronizer_view import SynchronizerView
from swarmstep.runtime.unfinished import Unfinished
from swarmstep.when import Never


class SavedSynchronizer(SynchronizerView):
    """A Synchronizer that can be saved and loaded.

    Args:
        replica: as in `SynchronizerView`.
        comm: as in `SynchronizerView`.
    """

    def __init__(self, replica: Replica, comm: Group) -> None:
        super().__init__(replica, comm)
        self._reduced: float | None = None  # the weight that the last call of `reduce` gave to the coming step
        wrapped = isinstance(replica.strategy.when, Never)
        self._first: FirstStep | None = FirstStep(replica.model, wrapped=wrapped)
        self._unfinished = Unfinished(self)

    def save(self, folder: str | Path, *things: Stateful, keep: int = 2) -> None:
        """Write a checkpoint: the swarm's state, the model, and what else goes on with it. Every rank calls it.

        Each rank writes a file of its own, FOLDER/step-N/rank-N.pt, and waits for the others, but in an elastic
        group, where one is left out if a worker was lost in the round under way. That round still lands at its
        step. The ranks may share the folder, or have disks of their own.

        Args:
            folder: made if absent.
            things: the model, and all that has `state_dict` and `load_state_dict`: optimizers, schedulers, an
                `EMA`; numbers, texts and tensors.
            keep: how many checkpoints stay, at least 1.

        Raises:
            CheckpointError: a rank could not write; on all ranks. Older checkpoints are untouched.
            UsageError: the model is not among the things, or one of them cannot be saved as data.
        """
        model = self._replica.model
        own_checkpoint.check_things("Synchronizer.save", things, model)
        state = own_checkpoint.state_of(model, things)
        try:
            state["sync"] = self.state_dict()
        except CommError:
            if not self.comm.elastic:
                raise
            return  # the round under way has failed: the next step goes on without the lost worker
        own_checkpoint.write(Path(folder), self.steps, state, self.comm, keep)

    def load(self, folder: str | Path, *things: Stateful) -> bool:
        """Go on from the newest checkpoint that all ranks have, if there is one. Every rank calls it.

        With another number of workers than it was written by, in a shared folder, the first ranks go on as they
        were, and a new one starts at the mean of all, with the other things of rank 0. A worker that has joined
        others in an elastic group has what it needs, and nothing is loaded.

        Args:
            folder: of `save`.
            things: as in `save`, in the same order.

        Returns:
            Whether this run goes on; `steps` then says from where. False: there is no checkpoint at all.

        Raises:
            CheckpointError: no checkpoint is complete, it is of another model, strategy or number of things, or it
                is of another number of workers and has a round under way.
            UsageError: as in `save`.
        """
        model, comm, place = self._replica.model, self.comm, Path(folder)
        own_checkpoint.check_things("Synchronizer.load", things, model)
        if comm.sources:
            return True
        states = own_checkpoint.read(place, comm)
        if states:
            self.load_state_dict(*own_checkpoint.restore(states, model, things, comm, place))
        return bool(states)

    def attach(self, name: str, thing: Stateful) -> None:
        """Let newcomers of an elastic group take over one thing more; see `Options.stateful`.

        A worker that joined others takes its state now: call this before any other method.
        """
        self._replica.attach(name, thing)

    def state_dict(self) -> dict[str, Any]:
        """Return numbers, strings and tensors: what this rank needs, besides model and optimizer, to go on.

        Waits for the round under way, which still lands at its step.
        """
        if self._reduced is not None:
            raise UsageError("Synchronizer.state_dict: called between reduce() and step(); call it after step()")
        self._unfinished.steps = 0
        return synchronizer_state.save(self._replica, self._rounds.group, self._rounds.counts)

    def load_state_dict(self, saved: Mapping[str, Any], sources: Sequence[int | None] = ()) -> None:
        """Go on from a `state_dict`; load the model's own state dict first.

        Args:
            saved: this rank's, or with `sources`, that of any rank of the group that was saved.
            sources: for each rank, its rank in the group that was saved, None for a newcomer. Empty: the group
                is as it was.

        Raises:
            CheckpointError: names the field that differs; nothing was loaded then.
        """
        synchronizer_state.load(saved, sources, self._replica, self._rounds.group, self._rounds.counts)
        if self._first:
            self._first.loaded()
