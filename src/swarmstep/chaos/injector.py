"""Carries out a schedule of faults on the workers of a supervisor."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Sequence

from swarmstep.chaos.disk import Disk
from swarmstep.chaos.event_log import Joined, Landed, Log, Tail, slot_of
from swarmstep.chaos.schedule import ScheduledFault, victim
from swarmstep.elastic.supervisor import Supervisor
from swarmstep.network.namespaces import Network

LOOK = 0.1  # seconds between two looks at the workers' files
PULSE = 0.15  # seconds for which a slow worker runs, and then does not; far below any limit of silence


@dataclasses.dataclass
class _Active:
    """A fault that is not over."""

    number: int
    fault: ScheduledFault
    worker: str | None
    until: float  # on the storm's clock
    turn: float  # when a slow worker is stopped, or goes on
    still: bool = False


class Injector:
    """Strikes when it is time; `tick` is called again and again, by the process that runs the supervisor.

    Healthy is who was a member at the last look at the workers' files, under its present name, and is not under
    a fault. A fault whose victim is not healthy strikes the next healthy slot instead; one that would leave fewer
    than two healthy members waits, and the later ones behind it.

    Args:
        faults: as `schedule` returns them.
        supervisor: of the workers.
        log: where it is written down, in the folder of the run.
        network: of the workers, for "cut".
        disk: of the checkpoints, for "disk".
    """

    def __init__(
        self,
        faults: Sequence[ScheduledFault],
        supervisor: Supervisor,
        log: Log,
        network: Network | None = None,
        disk: Disk | None = None,
    ) -> None:
        self._waiting = list(enumerate(faults))
        self._supervisor = supervisor
        self._tail = Tail(log.folder)
        self._log = log
        self._network = network
        self._disk = disk
        self._active: list[_Active] = []
        self._epoch = -1
        self._members: tuple[str, ...] = ()
        self._postponed = False
        self._looked = -LOOK
        self.round = 0  # the last one committed
        self.struck = 0

    @property
    def healthy(self) -> dict[int, str]:
        """The slots that may be struck, and their workers' names."""
        busy = {active.fault.slot for active in self._active}
        living = self._supervisor.living
        members = {slot_of(name): name for name in self._members}
        return {slot: name for slot, name in members.items() if living.get(slot) == name and slot not in busy}

    def look(self) -> None:
        """Read what the workers have written since the last look."""
        for event in self._tail.new():
            if isinstance(event, Joined | Landed):
                self.round = max(self.round, event.round)
                if event.epoch >= self._epoch:
                    self._epoch, self._members = event.epoch, event.members

    def tick(self, now: float) -> None:
        """Do what is due.

        Args:
            now: seconds since the storm began.
        """
        if now - self._looked >= LOOK:
            self._looked = now
            self.look()
        for active in [active for active in self._active if active.until <= now]:
            self._end(active)
        while self._waiting and self._waiting[0][1].at <= now and self._strike(*self._waiting[0], now):
            del self._waiting[0]
            self._postponed = False
        for active in self._active:
            if active.fault.kind == "slow" and active.turn <= now:
                active.still, active.turn = not active.still, now + PULSE
                self._signal(active, signal.SIGSTOP if active.still else signal.SIGCONT)

    def end(self) -> None:
        """End what is not over; what has not struck is given up."""
        for active in [*self._active]:
            self._end(active)
        for number, fault in self._waiting:
            self._log.write("given up", fault=number, what=fault.kind)
        self._waiting.clear()

    def _strike(self, number: int, fault: ScheduledFault, now: float) -> bool:
        """Strike, if there is anybody who may be struck."""
        healthy = self.healthy
        slot = fault.slot
        if slot is not None:
            slot = victim(slot, fault.kind, healthy, self._supervisor.workers)
        busy = fault.kind == "disk" and any(active.fault.kind == "disk" for active in self._active)
        if busy or (slot is None and fault.slot is not None):
            if not self._postponed:
                self._log.write("postponed", fault=number, what=fault.kind, healthy=sorted(healthy))
            self._postponed = True
            return False
        worker = None if slot is None else healthy[slot]
        active = _Active(number, fault._replace(slot=slot), worker, now + fault.seconds, now)
        about = {"planned": fault.at, "meant": fault.slot, "seconds": fault.seconds}
        self._log.write("strike", fault=number, what=fault.kind, slot=slot, worker=worker, **about)
        self.struck += 1
        self._active.append(active)
        self._begin(active)
        return True

    def _begin(self, active: _Active) -> None:
        kind, slot = active.fault.kind, active.fault.slot
        if kind == "kill":
            self._signal(active, signal.SIGKILL)
            self._end(active)
        elif kind == "stop":
            self._signal(active, signal.SIGSTOP)
        elif kind == "cut" and self._network and slot is not None:
            self._network.cut(slot)
        elif kind == "disk" and self._disk:
            self._disk.fill()

    def _end(self, active: _Active) -> None:
        kind, slot = active.fault.kind, active.fault.slot
        if kind in ("stop", "slow"):
            self._signal(active, signal.SIGCONT)
        elif kind == "cut" and self._network and slot is not None:
            self._network.mend(slot)
        elif kind == "disk" and self._disk:
            self._disk.free()
        self._active.remove(active)
        self._log.write("over", fault=active.number, what=kind)

    def _signal(self, active: _Active, number: int) -> None:
        if active.worker:  # if it is gone, its successor is not struck in its place
            self._supervisor.send_signal(active.worker, number)
