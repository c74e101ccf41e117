"""Workers as real processes, on torch.distributed.

Every wait ends: a peer that dies or falls silent is named, and one that is alive is waited for up to `patience`.
The gloo paths are tested; the nccl path is the same code with another backend, and not tested.
"""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from swarmstep import fault_points
from swarmstep.arguments import check_type
from swarmstep.comm.background import BackgroundTask, T, TaskQueue, TaskRegistry
from swarmstep.comm.buffer_pool import BufferPool
from swarmstep.comm.collectives import Collectives
from swarmstep.comm.epoch import Epoch, Members
from swarmstep.comm.group import KEPT, Decision, Group, not_elastic
from swarmstep.comm.heartbeat import Heartbeat
from swarmstep.comm.peer_watch import PeerWatch
from swarmstep.comm.process_groups import FORM_TIMEOUT
from swarmstep.comm.rendezvous import find
from swarmstep.comm.secure.auth import prove
from swarmstep.comm.torch_private import groups_made, set_timeout
from swarmstep.errors import UsageError
from swarmstep.waiting import Wait


class DistComm(Collectives, Group):
    """This process's view of a torch.distributed group.

    Args:
        data: the group for tensors on the model's device (None: the default group).
        control: a gloo group of the same ranks, for CPU tensors (None: `data`, which must then be gloo).
        heartbeat: tells a dead peer from a slow one (None: only `patience` limits a wait).
        exact: add in rank order, so that the result equals `simulate` bitwise; the traffic stays that of a
            ring (an exchange of chunks, then an all-gather).
        silence: seconds without a heartbeat after which a peer counts as lost.
        patience: seconds to wait for a peer that is alive.
        epoch: which group of a series this is (None: a lost peer ends the run).
    """

    def __init__(
        self,
        data: dist.ProcessGroup | None = None,
        control: dist.ProcessGroup | None = None,
        heartbeat: Heartbeat | None = None,
        *,
        exact: bool = False,
        silence: float = 30.0,
        patience: float = 1800.0,
        epoch: Epoch | None = None,
    ) -> None:
        check_type("DistComm: data", data, dist.ProcessGroup | None)
        check_type("DistComm: control", control, dist.ProcessGroup | None)
        if data is None and not dist.is_initialized():
            raise UsageError(
                "DistComm: expected a process group, found none; call DistComm.from_env() under torchrun, or "
                "torch.distributed.init_process_group before, or use simulate(train, workers)"
            )
        group: Any = data if data is not None else dist.group.WORLD
        super().__init__(group, control if control is not None else group, exact=exact)
        self._heartbeat = heartbeat
        self._ends_group = True
        self._silence, self._patience = silence, patience
        self._belong_to(epoch)
        self._vote = epoch.membership.vote("", self.size, first=True) if epoch else None
        self._part = ""  # which part of the epoch's group this is
        self._splits = 0
        self._parts: dict[str, DistComm] = {}
        self._tasks = TaskQueue(TaskRegistry())  # shared by what `reusing` returns; parts share the registry

    def _belong_to(self, epoch: Epoch | None) -> None:
        self._epoch = epoch
        limits = self._silence, self._patience
        self._watch = PeerWatch(self.rank, self._members, self._heartbeat, epoch, *limits)

    @classmethod
    def from_env(
        cls,
        backend: str | None = None,
        *,
        exact: bool = False,
        silence: float = 30.0,
        patience: float = 1800.0,
    ) -> DistComm:
        """Join the group that torchrun (or `swarmstep train`) describes in the environment.

        If a process group of torch exists already, as under Ray Train, it is that group, to which the watch over
        lost peers and the proof of the secret are added.

        Args:
            backend: "gloo" or "nccl" (default: nccl where CUDA is available, else gloo); of no effect if a group
                exists.
            exact: as in the class.
            silence: as in the class.
            patience: as in the class; also the time limit for the group to form.

        Raises:
            UsageError: RANK, WORLD_SIZE, MASTER_ADDR or MASTER_PORT is not set, or they do not describe the
                group that exists, or the ranks are on several machines and there is no secret (docs/security.md).
            CommError: the group could not be formed, or a member does not know the secret.
        """
        joined = find(backend, patience)
        first = cls(None, joined.control, exact=exact, patience=patience)
        # Every rank has made its Heartbeat and none has started it, so only patience limits this wait.
        first.gather(torch.zeros(1))
        if joined.secret:
            prove(first, joined.secret)
        joined.heartbeat.start()
        comm = cls(None, joined.control, joined.heartbeat, exact=exact, silence=silence, patience=patience)
        comm._ends_group = joined.formed
        return comm

    def close(self) -> None:
        """Leave the group; call it once, at the end of the program.

        torch's process groups end with it, unless `from_env` has found one that was there before.
        """
        self.settle()
        if self._heartbeat:
            self._heartbeat.stop()
        if self._ends_group and dist.is_initialized():
            dist.destroy_process_group()

    @property
    def elastic(self) -> bool:
        return self._epoch is not None

    @property
    def epoch(self) -> int:
        return self._epoch.number if self._epoch else 0

    @property
    def names(self) -> tuple[str, ...]:
        return self._epoch.names if self._epoch else ()

    @property
    def sources(self) -> tuple[int | None, ...]:
        return self._epoch.sources if self._epoch else ()

    @property
    def membership(self) -> Members | None:
        """What forms the groups of an elastic run; None in any other."""
        return self._epoch.membership if self._epoch else None

    def decide(self) -> Decision:
        if self._vote is None:
            return KEPT
        with Wait(f"the vote of {self._watch.awaited}"):
            return self._vote.decide(lambda waited: self._watch.check("the vote", waited))

    def meets(self, number: int, wanted: bool) -> bool:
        return self._epoch.membership.meets(number, wanted) if self._epoch else wanted

    @property
    def broken(self) -> bool:
        return self._epoch is not None and self._epoch.membership.trouble() is not None

    def renewal(self) -> BackgroundTask[Group]:
        if self._epoch is None:
            raise not_elastic(self)
        return TaskRegistry().start(self.renew)

    def renew(self) -> Group:
        if self._epoch is None:
            raise not_elastic(self)
        self.settle()
        return self._epoch.membership.renew()

    def elapse(self, seconds: float) -> None:
        time.sleep(seconds)

    def start(self, task: Callable[[], T]) -> BackgroundTask[T]:
        self._watch.background = True
        return self._tasks.start(task)

    def settle(self) -> None:
        self._tasks.registry.settle()

    def reusing(self) -> DistComm:
        own = copy.copy(self)
        own._parts, own._pool = {}, BufferPool(reuse=True)
        return own

    def recycle(self) -> None:
        self._pool.recycle()
        for part in self._parts.values():
            part.recycle()

    def split(self, color: int, name: str = "") -> DistComm:
        if name in self._parts:
            return self._parts[name]
        fault_points.reach(fault_points.SPLITTING)
        groups = self._new_groups(color)
        part = DistComm(
            groups[0],
            groups[-1],
            self._heartbeat,
            exact=self._exact,
            silence=self._silence,
            patience=self._patience,
        )
        part._become_part_of(self)
        if name:
            self._parts[name] = part.reusing() if self._pool.reuse else part
        return self._parts.get(name, part)

    def _new_groups(self, color: int) -> list[Any]:
        """Return a new process group of the ranks with this color, and a control group where it needs one."""
        made = groups_made()
        rows = self.gather(torch.tensor([color, made]))
        colors = rows[:, 0].tolist()
        # Only this limit notices a member of an elastic group that dies before it has connected.
        limit = timedelta(seconds=max(FORM_TIMEOUT, self._silence) if self.elastic else self._patience + 60)
        # torch numbers a new group by how many all ranks have made; where not all ranks take part, it is named
        # after its members and how many groups each has made: who has made fewer makes some alone first.
        everyone = self.size == dist.get_world_size()
        for _ in range(0 if everyone else int(rows[:, 1].max()) - made):
            dist.new_group([self._members[self.rank]], backend="gloo", use_local_synchronization=True)
        own: list[Any] = []
        for other in sorted(set(colors)) if everyone else [color]:
            members = [self._members[rank] for rank in range(self.size) if colors[rank] == other]
            options: dict[str, Any] = {"timeout": limit, "use_local_synchronization": not everyone}
            fault_points.reach(fault_points.CONNECTING_PART)
            try:
                with Wait(f"connections of a part of {self._watch.awaited}"):
                    groups = [dist.new_group(members, **options)]
                    if self._control is not self._data:
                        groups.append(dist.new_group(members, backend="gloo", **options))
            except RuntimeError as error:
                raise self._watch.lost("split", error) from error
            if other == color:
                own = groups
                set_timeout(own[0], self._patience + 60)
        return own

    def _become_part_of(self, whole: DistComm) -> None:
        whole._splits += 1
        self._part = f"{whole._part}.{whole._splits}"
        self._tasks = TaskQueue(whole._tasks.registry)
        if not whole._epoch:
            return
        names = tuple(whole.names[rank] for rank in self._members)
        self._belong_to(dataclasses.replace(whole._epoch, names=names, sources=()))
        if self.size == whole.size:  # rounds in the background are decided there
            self._vote = whole._epoch.membership.vote(self._part, self.size, first=False)
