"""Keeps W slots filled with workers that may die: starts them, replaces those that die, and outlives them all."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from swarmstep.comm.heartbeat import dead_key
from swarmstep.comm.store import Store, store_at
from swarmstep.elastic.formation import begun
from swarmstep.elastic.keys import KEPT, OVER, STOP, candidates_key
from swarmstep.elastic.slot import HOPELESS, Slot
from swarmstep.elastic.stall import StallWatch
from swarmstep.elastic.supervisor_options import SupervisorOptions
from swarmstep.errors import CommError, Interrupted, ResultNotFinite
from swarmstep.launch.fork_server import ForkServer, ProcessSpec
from swarmstep.launch.processes import (
    HASTE,
    TORCHRUN,
    Outcome,
    Place,
    last_line,
    signal_name,
    worker_environment,
)

ENDS = (0, ResultNotFinite.exit_code, Interrupted.exit_code)  # exit codes that tell that the run is over
LAST_WAIT = 60.0  # seconds that workers have to end once one has reported that the run is over
LEAVE_WAIT = 10.0  # seconds that they have to end where the run goes on elsewhere
STOPPED_ELSEWHERE = "the run was stopped after a round; resume it on its first machine, with all checkpoints"
UNBEGUN = "stopped on request before the training had begun; nothing was trained, and nothing is lost"


class Supervisor:
    """The workers of an elastic run; a context manager, at whose end none of them is left.

    Each is a process named SLOT.INCARNATION that finds in its environment SWARMSTEP_STORE (the address of the
    place's store), SWARMSTEP_WORKER (its name), SWARMSTEP_WORKERS (how many start the run: its slots, unless the
    place says otherwise) and SWARMSTEP_FOLDER (of the run). On the store "swarmstep/slots" counts the slots of all
    supervisors, so that no two have the same number, and "swarmstep/dead/NAME" tells that a worker has ended.

    Workers hear none of `launch.stopping.SIGNALS`: whoever signals all processes of a run signals the supervisor,
    too, which tells them through the store.

    A worker that exits with 0, 7 or 130 reports that the run is over; 5, or an end by a signal, is a death; any
    other code ends the run. One that exits with 0 after "stop", before all steps are taken, was in no group
    yet: the others go on to their next round and stop there.

    Args:
        arguments: of the workers' command line, the same for all.
        workers: number of slots.
        folder: of the run, which the caller holds (None: it writes no files).
        place: where the workers run.
        options: see `SupervisorOptions`.

    Attributes:
        outcome: how the run has ended (None: it goes on).
        stalls: tells what the workers wait for.

    Raises:
        CommError: a worker could not be started.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        workers: int,
        folder: Path | None,
        place: Place | None = None,
        options: SupervisorOptions | None = None,
    ) -> None:
        self.workers = workers
        self.outcome: Outcome | None = None
        self._arguments = [*arguments]
        self._folder = folder
        self._place = place or Place()
        self._options = options or SupervisorOptions()
        self._slots = list[Slot]()
        self._interrupts = 0  # that have been acted on
        self._over: Outcome | None = None  # as a worker has reported; the others are about to end
        self._over_since = self._deadline = math.inf  # when it was over; until when they have to end
        self._stopping = False
        self._last_error = ""  # of the last worker that died
        self._unsaid = set[str]()  # keys to set, while the store does not answer

    def __enter__(self) -> Supervisor:
        with contextlib.ExitStack() as stack:
            self._store, self._address = self._opened()
            follows = self._options.follows
            slots = 0 if follows else self._store.add("swarmstep/slots", self.workers)
            last = follows or dict.fromkeys(range(slots - self.workers, slots), -1)
            self._slots = [Slot(number, incarnation) for number, incarnation in last.items()]
            self._errors = self._options.errors or Path(stack.enter_context(_temporary_folder()))
            self._server = stack.enter_context(ForkServer(worker_environment()))
            self.stalls = StallWatch(self._errors, self._folder, self.send_signal)
            self._stack = stack.pop_all()
        return self

    def _opened(self) -> tuple[Store, str]:
        """Return the store, and its address for the workers."""
        if self._place.store:
            return store_at(self._place.store).connect(LAST_WAIT), self._place.store
        store, port = self._place.serve()
        return cast(Store, store), f"{self._place.environment.get('MASTER_ADDR', '127.0.0.1')}:{port}"

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    @property
    def living(self) -> dict[int, str]:
        """The name of the worker in each slot that has one."""
        return {slot.number: slot.worker for slot in self._slots if slot.pid is not None}

    @property
    def pids(self) -> dict[int, int]:
        """The process id of the worker in each slot that has one."""
        return {slot.number: slot.pid for slot in self._slots if slot.pid is not None}

    @property
    def store(self) -> Store:
        """A connection to the store."""
        return self._store

    @property
    def joined(self) -> bool:
        """Whether a worker has asked to be in a group."""
        return self._store.check([candidates_key(0)]) or self._store.check([KEPT])

    def keys(self) -> int:
        """Return how many keys the store has; raise RuntimeError if it does not answer."""
        return self._store.num_keys()

    def send_signal(self, worker: str, number: int) -> bool:
        """Send a signal to the worker of this name; return whether it was still running."""
        slot = next((slot for slot in self._slots if slot.worker == worker), None)
        if slot is None or slot.pid is None:
            return False
        self._server.send_signal(slot.pid, number)
        return True

    def tell(self, word: str) -> None:
        """Tell all workers to "stop" (at a round, with a checkpoint) or "finish" (as if all steps were taken)."""
        self._stopping = True
        self._say(f"swarmstep/{word}")

    def _say(self, *keys: str) -> None:
        """Set keys of the store to 1: once it answers."""
        self._unsaid |= {*keys}
        with contextlib.suppress(RuntimeError):  # where it is another machine's and gone, `trouble` will tell
            for key in sorted(self._unsaid):
                self._store.set(key, "1")
                self._unsaid.discard(key)

    def attend(self, seconds: float, interrupts: Sequence[int] = ()) -> Outcome | None:
        """Do what has become due; to be called again and again.

        Args:
            seconds: to wait at most for a worker to end.
            interrupts: as `noting_interrupts` yields; the first asks the workers to stop, the second ends all.

        Returns:
            How the run has ended; None while it goes on.
        """
        self._obey(interrupts)
        self._say()
        trouble = self._options.trouble and self._options.trouble()
        if trouble and not self._over:
            self._end_within(HASTE, Outcome(CommError.exit_code, trouble))
        if not (self.outcome or self._over or self._stopping):
            for slot in self._slots:
                if slot.wait <= 0:
                    self._start(slot)
        for pid, code in self._server.ended(min([seconds, *(s.wait for s in self._slots if s.wait > 0)])):
            self._note_end(next(slot for slot in self._slots if slot.pid == pid), code)
        self.stalls.look(self.living, self._over_since)
        self.outcome = self.outcome or self._ending()
        return self.outcome

    def _obey(self, interrupts: Sequence[int]) -> None:
        if interrupts and not self._interrupts:
            self._leave() if self._options.trouble else self.tell("stop")
        elif len(interrupts) > 1:
            message = "ended at once on request; nothing was saved since the last checkpoint"
            self.outcome = self.outcome or Outcome(Interrupted.exit_code, message)
        self._interrupts = len(interrupts)

    def _leave(self) -> None:
        """End the workers; the run goes on without them."""
        for pid in self.pids.values():
            self._server.send_signal(pid, signal.SIGKILL)
        message = "left the run on request; it goes on elsewhere"
        self._end_within(LEAVE_WAIT, Outcome(Interrupted.exit_code, message))

    def _end_within(self, seconds: float, outcome: Outcome) -> None:
        self._over = self._over or outcome
        self._over_since = min(self._over_since, time.monotonic())
        self._deadline = time.monotonic() + seconds

    def _start(self, slot: Slot) -> None:
        slot.incarnation += 1
        namespace = self._place.namespace
        spec = ProcessSpec(
            program=self._options.program,
            arguments=self._arguments,
            environment=self._environment(slot),
            stdout=None if self._options.shown else os.devnull,
            stderr=None if self._options.shown else str(self._errors / f"{slot.worker}.errors"),
            namespace=namespace(slot.number) if namespace else None,
        )
        pid = self._server.start(spec)
        slot.start(pid)
        self._report("started", slot, pid=pid)

    def _environment(self, slot: Slot) -> dict[str, str]:
        return {
            **worker_environment(),
            **({"SWARMSTEP_FOLDER": str(self._folder)} if self._folder else {}),
            "SWARMSTEP_STORE": self._address,
            "SWARMSTEP_WORKER": slot.worker,
            "SWARMSTEP_WORKERS": str(len(self._slots)),
            "SWARMSTEP_LAUNCHER": str(self._server.pid),
            "SWARMSTEP_SAYS": str(self._errors / f"{slot.worker}.says"),
            **{name: value for name, value in self._place.environment.items() if name not in TORCHRUN},
        }

    def _note_end(self, slot: Slot, code: int) -> None:
        """Tell the others, through the store, that a worker has ended, and decide what follows from it."""
        self._say(dead_key(slot.worker))
        slot.end()
        error = self._error_of(slot.worker, code)
        known = self.outcome or self._over
        self._report("ended", slot, code=code, error=error, lost=not known and code not in ENDS)
        if code and code in ENDS and self._over and not self._over.code:
            self._over = Outcome(code, error)  # from the one worker that knows the result
        if known:
            return  # whatever it is, it is no failure any more
        if code == 0 and self._is_set(STOP) and not self._is_set(OVER):
            slot.close()
        elif code in ENDS:
            message = STOPPED_ELSEWHERE if self._options.trouble else error
            self._end_within(LAST_WAIT, Outcome(code, message if code else ""))
        elif code > 0 and code != CommError.exit_code:
            self.outcome = Outcome(code, error)
        else:
            self._last_error = error
            slot.restart_later()
            if not self._options.restart:
                slot.close()

    def _ending(self) -> Outcome | None:
        """Return how the run has ended, if it has."""
        if self._over:
            return self._over if not self.living or time.monotonic() >= self._deadline else None
        if all(slot.hopeless for slot in self._slots):
            why = f"each of {len(self._slots)} workers died {HOPELESS} times in a row soon after its start"
            return Outcome(CommError.exit_code, f"{why}; the last: {self._last_error}")
        none_starts = self._stopping or all(slot.closed for slot in self._slots)
        return self._none_left() if none_starts and not self.living else None

    def _none_left(self) -> Outcome:
        """Return how the run has ended where no worker has reported that it is over."""
        if not self._is_set(STOP) or (self._last_error and begun(self._store)):
            message = f"no worker is left; the last: {self._last_error}"
            return Outcome(CommError.exit_code, message, killed=True)
        message = UNBEGUN if not begun(self._store) else "stopped on request"
        return Outcome(Interrupted.exit_code, STOPPED_ELSEWHERE if self._options.trouble else message)

    def _is_set(self, key: str) -> bool:
        # `add` alone would make the key, and workers look for it.
        with contextlib.suppress(RuntimeError):  # as in `_say`
            return self._store.check([key]) and self._store.add(key, 0) > 0
        return False

    def _error_of(self, worker: str, code: int) -> str:
        """Return why a worker has ended: its own error message, else the end of its standard error."""
        if code < 0:
            return f"worker {worker} was ended by {signal_name(code)}"
        why = ", for which see above" if self._options.shown else " and said nothing"
        return last_line(self._errors, worker) or (f"worker {worker} ended with code {code}{why}" if code else "")

    def _report(self, kind: str, slot: Slot, **more: Any) -> None:
        event = {"kind": kind, "time": time.time(), "worker": slot.worker, "slot": slot.number, **more}
        self._options.listen(event)


def _temporary_folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="swarmstep-")
