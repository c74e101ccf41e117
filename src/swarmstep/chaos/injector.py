"""Injects a schedule of faults into the workers of a supervisor."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Sequence

from swarmstep.chaos.disk import Disk
from swarmstep.chaos.event_log import FaultLog, Joined, Landed, Tail, slot_of
from swarmstep.chaos.schedule import ScheduledFault, victim
from swarmstep.elastic.supervisor import Supervisor
from swarmstep.network.namespaces import Network

READ_INTERVAL = 0.1  # seconds between two reads of the workers' files
SLOW_INTERVAL = 0.15  # seconds for which a slow worker runs, then stops; far below any limit of silence


@dataclasses.dataclass
class _ActiveFault:
    """A fault that has not ended."""

    number: int
    fault: ScheduledFault
    worker: str | None
    until: float  # seconds since the start of the injection
    next_switch: float  # when a slow worker is stopped or continued
    stopped: bool = False


class Injector:
    """Injects each fault when it is due; the process that runs the supervisor calls `tick` again and again.

    A worker is healthy if, by its present name, it is a member of the group according to the workers' files, and
    has no other fault. If the victim of a fault is not healthy, the next healthy slot is hit instead; a fault that
    would leave fewer than two healthy members waits, and later faults behind it.

    Args:
        faults: of `schedule`.
        supervisor: of the workers.
        log: in the folder of the run.
        network: of the workers, for "cut".
        disk: of the checkpoints, for "disk".
    """

    def __init__(
        self,
        faults: Sequence[ScheduledFault],
        supervisor: Supervisor,
        log: FaultLog,
        network: Network | None = None,
        disk: Disk | None = None,
    ) -> None:
        self._waiting = list(enumerate(faults))
        self._supervisor = supervisor
        self._tail = Tail(log.folder)
        self._log = log
        self._network = network
        self._disk = disk
        self._active: list[_ActiveFault] = []
        self._epoch = -1
        self._members: tuple[str, ...] = ()
        self._postponed = False
        self._last_read = -READ_INTERVAL
        self.round = 0  # the last one committed
        self.injected = 0

    @property
    def healthy(self) -> dict[int, str]:
        """The slots that may be hit, with their workers' names."""
        busy = {active.fault.slot for active in self._active}
        living = self._supervisor.living
        members = {slot_of(name): name for name in self._members}
        return {slot: name for slot, name in members.items() if living.get(slot) == name and slot not in busy}

    def read_events(self) -> None:
        """Read what the workers have written since the last call."""
        for event in self._tail.new():
            if isinstance(event, Joined | Landed):
                self.round = max(self.round, event.round)
                if event.epoch >= self._epoch:
                    self._epoch, self._members = event.epoch, event.members

    def tick(self, now: float) -> None:
        """Start and end the faults that are due.

        Args:
            now: seconds since the start of the injection.
        """
        if now - self._last_read >= READ_INTERVAL:
            self._last_read = now
            self.read_events()
        for active in [active for active in self._active if active.until <= now]:
            self._end(active)
        while self._waiting and self._waiting[0][1].at <= now and self._inject(*self._waiting[0], now):
            del self._waiting[0]
            self._postponed = False
        for active in self._active:
            if active.fault.kind == "slow" and active.next_switch <= now:
                active.stopped, active.next_switch = not active.stopped, now + SLOW_INTERVAL
                self._signal(active, signal.SIGSTOP if active.stopped else signal.SIGCONT)

    def end(self) -> None:
        """End all active faults, and drop those that were not injected."""
        for active in [*self._active]:
            self._end(active)
        for number, fault in self._waiting:
            self._log.write("given up", fault=number, what=fault.kind)
        self._waiting.clear()

    def _inject(self, number: int, fault: ScheduledFault, now: float) -> bool:
        """Inject a fault; return False if no worker may be hit now."""
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
        active = _ActiveFault(number, fault._replace(slot=slot), worker, now + fault.seconds, now)
        planned = {"planned": fault.at, "meant": fault.slot, "seconds": fault.seconds}
        self._log.write("strike", fault=number, what=fault.kind, slot=slot, worker=worker, **planned)
        self.injected += 1
        self._active.append(active)
        self._start(active)
        return True

    def _start(self, active: _ActiveFault) -> None:
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

    def _end(self, active: _ActiveFault) -> None:
        kind, slot = active.fault.kind, active.fault.slot
        if kind in ("stop", "slow"):
            self._signal(active, signal.SIGCONT)
        elif kind == "cut" and self._network and slot is not None:
            self._network.mend(slot)
        elif kind == "disk" and self._disk:
            self._disk.free()
        self._active.remove(active)
        self._log.write("over", fault=active.number, what=kind)

    def _signal(self, active: _ActiveFault, number: int) -> None:
        if active.worker:  # by name: if the worker is gone, its successor is not hit instead
            self._supervisor.send_signal(active.worker, number)
