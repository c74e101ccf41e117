"""How each kind of fault is injected, and undone."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
from collections.abc import Callable
from pathlib import Path

from swarmstep.chaos.disk import Disk
from swarmstep.chaos.etcd import Cluster
from swarmstep.chaos.event_log import FaultLog
from swarmstep.chaos.memory import MemoryLimit
from swarmstep.chaos.replay import Replay
from swarmstep.chaos.schedule import ScheduledFault
from swarmstep.chaos.supervisors import Supervisors, Workers
from swarmstep.checkpoint.file import read_content
from swarmstep.checkpoint.folder import steps_in
from swarmstep.errors import CheckpointError
from swarmstep.network.namespaces import Network

SLOW_INTERVAL = 0.15  # seconds for which a slow worker runs, then stops; far below any limit of silence
LOSS, DELAY = 0.2, 0.5  # of "loss", a probability; of "delay", seconds


@dataclasses.dataclass
class ActiveFault:
    """A fault that has not ended."""

    number: int
    fault: ScheduledFault
    worker: str | None
    until: float  # seconds since the start of the injection
    next_switch: float  # when a slow worker is stopped or continued
    stopped: bool = False
    victims: tuple[str, ...] = ()
    undo: Callable[[], None] = lambda: None

    @property
    def slot(self) -> int:
        """Of the worker that is hit."""
        assert self.fault.slot is not None
        return self.fault.slot


@dataclasses.dataclass
class Means:
    """What faults are injected into.

    Args:
        supervisor: of the workers.
        log: of the run.
        network: of the workers, for faults of links.
        disk: of the checkpoints, for those of disks.
        store: that the command has started, for "leader" and "replay".
        replays: sends old messages of a run again.
    """

    supervisor: Workers
    log: FaultLog
    network: Network | None = None
    disk: Disk | None = None
    store: Cluster | None = None
    replays: Replay | None = None

    def signal(self, active: ActiveFault, number: int) -> None:
        """Send a signal to the victim, by name: if it is gone, its successor is not hit instead."""
        if active.worker:
            self.supervisor.send_signal(active.worker, number)

    def start(self, active: ActiveFault) -> None:
        """Inject a fault, and note in it how it is undone."""
        injections: dict[str, Callable[[ActiveFault], Callable[[], None] | None]] = {
            "kill": self._kill,
            "stop": self._stop,
            "slow": lambda active: lambda: self.signal(active, signal.SIGCONT),
            "churn": self._kill,
            "cut": self._cut,
            "crash": self._crash,
            "mute": lambda active: self._block(active, sends=True),
            "deaf": lambda active: self._block(active, sends=False),
            "loss": lambda active: self._impair(active, 0.0, LOSS),
            "delay": lambda active: self._impair(active, DELAY, 0.0),
            "disk": self._fill,
            "readonly": self._lock,
            "corrupt": self._corrupt,
            "memory": self._limit,
            "replay": self._replay,
            "leader": self._kill_leader,
            "supervisor": self._kill_supervisor,
        }
        active.undo = injections[active.fault.kind](active) or active.undo

    def tick(self, active: ActiveFault, now: float, members: tuple[str, ...]) -> None:
        """Go on with a fault that does something again and again.

        Args:
            active: which.
            now: seconds since the start of the injection.
            members: of the group.
        """
        kind = active.fault.kind
        if kind == "slow" and active.next_switch <= now:
            active.stopped, active.next_switch = not active.stopped, now + SLOW_INTERVAL
            self.signal(active, signal.SIGSTOP if active.stopped else signal.SIGCONT)
        elif kind == "churn":
            worker = self.supervisor.living.get(active.slot)
            if worker in members and worker != active.worker:
                active.worker = worker
                self.signal(active, signal.SIGKILL)
                self.log.write("killed", worker=worker, slot=active.slot)

    def _kill(self, active: ActiveFault) -> None:
        self.signal(active, signal.SIGKILL)

    def _stop(self, active: ActiveFault) -> Callable[[], None]:
        self.signal(active, signal.SIGSTOP)
        return lambda: self.signal(active, signal.SIGCONT)

    def _links(self) -> Network:
        assert self.network
        return self.network

    def _cut(self, active: ActiveFault) -> Callable[[], None]:
        self._links().cut(active.slot)
        return lambda: self._links().mend(active.slot)

    def _crash(self, active: ActiveFault) -> Callable[[], None]:
        undo = self._cut(active)
        self.signal(active, signal.SIGKILL)
        return undo

    def _block(self, active: ActiveFault, *, sends: bool) -> Callable[[], None]:
        self._links().block(active.slot, sends=sends)
        return lambda: self._links().unblock(active.slot, sends=sends)

    def _impair(self, active: ActiveFault, delay: float, loss: float) -> Callable[[], None]:
        self._links().impair(active.slot, delay, loss)
        return lambda: self._links().impair(active.slot, 0.0, 0.0)

    def _fill(self, active: ActiveFault) -> Callable[[], None]:
        assert self.disk
        self.disk.fill()
        return self.disk.free

    def _lock(self, active: ActiveFault) -> Callable[[], None]:
        assert self.disk
        self.disk.lock()
        return self.disk.unlock

    def _corrupt(self, active: ActiveFault) -> None:
        file = newest_file(self.log.folder / "checkpoints")
        found = file is not None and flip_a_bit(file)
        self.log.write("corrupted", file=str(file.name) if file else None, noticed=found)

    def _limit(self, active: ActiveFault) -> Callable[[], None] | None:
        pid = pid_of(self.supervisor, active.worker or "")
        if pid is None:
            return None
        limit = MemoryLimit(pid)
        return limit.remove

    def _replay(self, active: ActiveFault) -> None:
        assert self.replays
        sent = self.replays.again(active.worker or "")
        self.log.write("replayed", what=sent)

    def _kill_leader(self, active: ActiveFault) -> Callable[[], None] | None:
        assert self.store
        store, leader = self.store, self.store.leader()
        if leader is None:  # between two leaders: there is none to kill
            return None
        store.kill(leader)
        self.log.write("killed", machine=leader)
        return lambda: store.restart(leader)

    def _kill_supervisor(self, active: ActiveFault) -> None:
        assert isinstance(self.supervisor, Supervisors)
        shares = self.supervisor.shares
        fullest = max(
            range(len(shares)), key=lambda index: (len(shares[index]), index == active.number % len(shares))
        )
        active.victims = tuple(self.supervisor.kill(fullest))


def pid_of(supervisor: Workers, worker: str) -> int | None:
    """Return the process of the worker of this name; None if it has ended."""
    slot = int(worker.partition(".")[0])
    return supervisor.pids.get(slot) if supervisor.living.get(slot) == worker else None


def newest_file(folder: Path) -> Path | None:
    """Return a file of the newest checkpoint, whole or not; None if there is none."""
    for step in steps_in(folder):
        files = sorted((folder / f"step-{step:08d}").glob("rank-*.pt"))
        if files:
            return files[0]
    return None


def flip_a_bit(path: Path) -> bool:
    """Flip a bit in the middle of a checkpoint's file; return whether who reads it notices, or it is gone."""
    try:
        with path.open("r+b") as file:
            place = os.fstat(file.fileno()).st_size // 2
            file.seek(place)
            byte = file.read(1)
            file.seek(place)
            file.write(bytes([byte[0] ^ 1]))
        step, rank = int(path.parent.name.rpartition("-")[2]), int(path.stem.rpartition("-")[2])
        with contextlib.suppress(CheckpointError):
            read_content(path, step, rank, None)
            return False
    except (OSError, IndexError):  # the workers have removed it meanwhile, or the disk is full or read-only
        pass
    return True
