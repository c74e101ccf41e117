"""Injects a schedule of faults into the workers of a supervisor."""

from __future__ import annotations

from collections.abc import Sequence

from swarmstep.chaos.event_log import Joined, Landed, Tail, slot_of
from swarmstep.chaos.means import ActiveFault, Means
from swarmstep.chaos.schedule import TABLE, ScheduledFault, victim
from swarmstep.errors import CommError

READ_INTERVAL = 0.1  # seconds between two reads of the workers' files


class Injector:
    """Injects each fault when it is due; the process that runs the supervisor calls `tick` again and again.

    A worker is healthy if, by its present name, it is a member of the group according to the workers' files, and
    has no other fault. If the victim of a fault is not healthy, the next healthy slot is hit instead; a fault that
    would leave fewer than two healthy members waits, and later faults behind it.

    Args:
        faults: of `schedule`.
        means: what they are injected into.
    """

    def __init__(self, faults: Sequence[ScheduledFault], means: Means) -> None:
        self._waiting = list(enumerate(faults))
        self._means = means
        self._supervisor, self._log = means.supervisor, means.log
        self._tail = Tail(means.log.folder)
        self._active: list[ActiveFault] = []
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
            self._means.tick(active, now, self._members)

    def end(self) -> None:
        """End all active faults, and drop those that were not injected."""
        for active in [*self._active]:
            self._end(active)
        for number, fault in self._waiting:
            self._log.write("given up", fault=number, what=fault.kind)
        self._waiting.clear()

    def _inject(self, number: int, fault: ScheduledFault, now: float) -> bool:
        """Inject a fault; return False if nobody may be hit now."""
        healthy = self.healthy
        slot = fault.slot
        if slot is not None:
            slot = victim(slot, fault.kind, healthy, self._supervisor.workers)
        if self._busy(fault.kind) or (slot is None and fault.slot is not None):
            if not self._postponed:
                self._log.write("postponed", fault=number, what=fault.kind, healthy=sorted(healthy))
            self._postponed = True
            return False
        worker = None if slot is None else healthy[slot]
        active = ActiveFault(number, fault._replace(slot=slot), worker, now + fault.seconds, now)
        planned = {"planned": fault.at, "meant": fault.slot, "seconds": fault.seconds}
        self._log.write("strike", fault=number, what=fault.kind, slot=slot, worker=worker, **planned)
        self.injected += 1
        self._active.append(active)
        try:
            self._means.start(active)
        except CommError as error:  # it goes on without this one, which does not count as survived
            self._log.write("failed", fault=number, what=fault.kind, why=str(error))
        if active.victims:
            self._log.write("hit", fault=number, victims=active.victims)
        if not fault.seconds:
            self._end(active)
        return True

    def _busy(self, kind: str) -> bool:
        """Return whether a fault that hits no single worker has to wait: for another like it, or for members."""
        strikes = TABLE[kind].strikes
        if strikes == "supervisor" and len(self.healthy) < self._supervisor.workers - 1:
            return True  # all of its workers end at once; the others must be there
        return strikes != "worker" and any(TABLE[one.fault.kind].strikes == strikes for one in self._active)

    def _end(self, active: ActiveFault) -> None:
        active.undo()
        self._active.remove(active)
        self._log.write("over", fault=active.number, what=active.fault.kind)
