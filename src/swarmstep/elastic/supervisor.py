"""Keeps W slots filled with workers that may die: starts them, restarts those that do, and outlives them all."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import signal
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from swarmstep.comm.torch_private import TCPStore
from swarmstep.elastic.formation import begun
from swarmstep.elastic.keys import OVER, STOP
from swarmstep.errors import CommError, Interrupted
from swarmstep.launch.fork_server import ForkServer, ProcessSpec
from swarmstep.launch.processes import HASTE, LOOPBACK, Outcome, Place

HEALTHY = 5.0  # seconds after which a worker's start counts as a success
PAUSE, LONGEST_PAUSE = 0.1, 30.0  # seconds before a restart, doubled with each start that was none
HOPELESS = 5  # failed starts in a row, of every slot, after which the run has failed
LAST_WAIT = 60.0  # seconds that workers have to end once one has said that the run is over
LEAVE_WAIT = 10.0  # seconds that they have to leave a run that goes on elsewhere
STOPPED_ELSEWHERE = "the run was stopped after a round; resume it on its first machine, with all checkpoints"
UNBEGUN = "stopped on request before the training had begun; nothing was trained, and nothing is lost"
TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclasses.dataclass(frozen=True)
class SupervisorOptions:
    """How a supervisor works.

    Args:
        restart: whether a worker that dies is started again.
        shown: whether workers write to this process's output; else to nobody.
        program: what a worker is, as of a `ProcessSpec`.
        words: a folder that exists, for what workers say at their end and write to standard error (None: a
            temporary one).
        listen: called with each start and end of a worker: "kind" ("started", "ended"), "time", "worker", "slot",
            and of an end "code" (an exit code, or -signal), "said", and "lost": it was not yet over.
        trouble: where the run is another machine's, called again and again: why it is over for this one, if so.
            An interrupt then means to leave the run, not to stop it.
    """

    restart: bool = True
    shown: bool = False
    program: str = "swarmstep"
    words: Path | None = None
    listen: Callable[[dict[str, Any]], None] = lambda event: None
    trouble: Callable[[], str | None] | None = None


@dataclasses.dataclass
class _Slot:
    number: int
    incarnation: int = -1
    pid: int | None = None
    started: float = 0.0
    failures: int = 0  # starts in a row that were followed by a death within HEALTHY seconds
    due: float = 0.0  # when the next incarnation starts; infinity: never

    @property
    def name(self) -> str:
        return f"{self.number}.{self.incarnation}"


class Supervisor:
    """The workers of an elastic run; a context manager, at whose end none of them is left.

    Each is a process named SLOT.INCARNATION, and knows from its environment: SWARMSTEP_STORE (HOST:PORT of the
    store of the place), SWARMSTEP_WORKER (its name), SWARMSTEP_WORKERS (how many start the run: its slots, unless
    the place says otherwise) and SWARMSTEP_FOLDER (of the run). On the store "swarmstep/slots" counts the slots of
    all supervisors, so that each has a number of its own, and "swarmstep/dead/NAME" tells of the end of a worker.

    A worker that exits with 0 or 130 says that the run is over; 5, or an end by a signal, is a death; any other
    code ends the run. One that exits with 0 after "stop", though not all steps are taken, was in no group yet: the
    others go on to their next round, and stop there.

    Args:
        arguments: of the workers' command line, the same for all.
        workers: how many slots.
        folder: of the run, which the caller holds (None: it writes no files).
        place: where.
        manner: how.

    Raises:
        CommError: a worker could not be started.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        workers: int,
        folder: Path | None,
        place: Place | None = None,
        manner: SupervisorOptions | None = None,
    ) -> None:
        self.workers = workers
        self._arguments = [*arguments]
        self._folder = folder
        self._place = place or Place()
        self._manner = manner or SupervisorOptions()
        self._slots = list[_Slot]()
        self._obeyed = 0  # interrupts
        self._over: Outcome | None = None  # said by a worker; the others are about to end
        self._deadline = math.inf
        self._stopping = False
        self._last = ""  # what the last worker that died said
        self.outcome: Outcome | None = None

    def __enter__(self) -> Supervisor:
        with contextlib.ExitStack() as stack:
            store, self._port = self._place.serve()
            self._store = cast(TCPStore, store)
            slots = self._store.add("swarmstep/slots", self.workers)
            self._slots = [_Slot(number) for number in range(slots - self.workers, slots)]
            self._words = self._manner.words or Path(stack.enter_context(_temporary()))
            self._server = stack.enter_context(ForkServer(_common_environment()))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    @property
    def living(self) -> dict[int, str]:
        """The slots that have a process, and its name."""
        return {slot.number: slot.name for slot in self._slots if slot.pid is not None}

    @property
    def pids(self) -> dict[int, int]:
        """The slots that have a process, and its id."""
        return {slot.number: slot.pid for slot in self._slots if slot.pid is not None}

    def send_signal(self, worker: str, number: int) -> bool:
        """Send a signal to the worker of this name; return whether it still was there."""
        slot = next((slot for slot in self._slots if slot.name == worker), None)
        if slot is None or slot.pid is None:
            return False
        self._server.send_signal(slot.pid, number)
        return True

    def tell(self, word: str) -> None:
        """Tell all workers "stop" (with a checkpoint, at a round) or "finish" (as if all steps were taken)."""
        self._stopping = True
        self._store.set(f"swarmstep/{word}", "1")

    def attend(self, seconds: float, interrupts: Sequence[int] = ()) -> Outcome | None:
        """Do what has become due, waiting for at most `seconds`; call it again and again.

        Args:
            seconds: to wait for a worker to end.
            interrupts: as `noting_interrupts` yields; the first asks the workers to stop, the second ends all.

        Returns:
            How it ended; None while it goes on.
        """
        self._obey(interrupts)
        trouble = self._manner.trouble and self._manner.trouble()
        if trouble and not self._over:
            self._end_soon(Outcome(CommError.exit_code, trouble), HASTE)
        if not (self.outcome or self._over or self._stopping):
            for slot in self._slots:
                if slot.pid is None and slot.due <= time.monotonic():
                    self._start(slot)
        waiting = [slot.due - time.monotonic() for slot in self._slots if slot.pid is None]
        for pid, code in self._server.ended(min([seconds, *(wait for wait in waiting if wait > 0)])):
            self._bury(next(slot for slot in self._slots if slot.pid == pid), code)
        self.outcome = self.outcome or self._ending()
        return self.outcome

    def _obey(self, interrupts: Sequence[int]) -> None:
        if interrupts and not self._obeyed:
            self._leave() if self._manner.trouble else self.tell("stop")
        elif len(interrupts) > 1:
            said = "ended at once on request; nothing was saved since the last checkpoint"
            self.outcome = self.outcome or Outcome(Interrupted.exit_code, said)
        self._obeyed = len(interrupts)

    def _leave(self) -> None:
        """Have the workers leave the run, which goes on without them."""
        for pid in self.pids.values():
            self._server.send_signal(pid, signal.SIGTERM)
        self._end_soon(Outcome(Interrupted.exit_code, "left the run on request; it goes on elsewhere"), LEAVE_WAIT)

    def _end_soon(self, outcome: Outcome, seconds: float) -> None:
        self._over = self._over or outcome
        self._deadline = time.monotonic() + seconds

    def _start(self, slot: _Slot) -> None:
        slot.incarnation += 1
        output = None if self._manner.shown else os.devnull
        errors = None if self._manner.shown else str(self._words / f"{slot.name}.errors")
        place = self._place.namespace
        job = ProcessSpec(
            program=self._manner.program,
            arguments=self._arguments,
            environment=self._environment(slot),
            stdout=output,
            stderr=errors,
            namespace=place(slot.number) if place else None,
        )
        slot.pid, slot.started = self._server.start(job), time.monotonic()
        self._tell_listener("started", slot, pid=slot.pid)

    def _environment(self, slot: _Slot) -> dict[str, str]:
        host = self._place.environment.get("MASTER_ADDR", "127.0.0.1")
        return {
            **_common_environment(),
            **({"SWARMSTEP_FOLDER": str(self._folder)} if self._folder else {}),
            "SWARMSTEP_STORE": f"{host}:{self._port}",
            "SWARMSTEP_WORKER": slot.name,
            "SWARMSTEP_WORKERS": str(len(self._slots)),
            "SWARMSTEP_LAUNCHER": str(self._server.pid),
            "SWARMSTEP_SAYS": str(self._words / f"{slot.name}.says"),
            **{name: value for name, value in self._place.environment.items() if name not in TORCHRUN},
        }

    def _bury(self, slot: _Slot, code: int) -> None:
        """Take note of the end of a worker."""
        with contextlib.suppress(RuntimeError):  # the store is another machine's, and gone: trouble, soon
            self._store.set(f"swarmstep/dead/{slot.name}", "1")
        slot.pid, lived = None, time.monotonic() - slot.started
        said = self._said_by(slot.name, code)
        over = bool(self.outcome or self._over or code in (0, Interrupted.exit_code))
        self._tell_listener("ended", slot, code=code, said=said, lost=not over)
        if self.outcome or self._over:
            return  # no failure any more
        if code == 0 and self._is_set(STOP) and not self._is_set(OVER):
            slot.due = math.inf
        elif code in (0, Interrupted.exit_code):
            stopped = STOPPED_ELSEWHERE if self._manner.trouble else said
            self._end_soon(Outcome(code, stopped if code else ""), LAST_WAIT)
        elif code > 0 and code != CommError.exit_code:
            self.outcome = Outcome(code, said)
        else:
            self._last = said
            slot.failures = slot.failures + 1 if lived < HEALTHY else 0
            pause = min(LONGEST_PAUSE, PAUSE * 2.0 ** (slot.failures - 1)) if slot.failures else 0.0
            slot.due = time.monotonic() + pause if self._manner.restart else math.inf

    def _ending(self) -> Outcome | None:
        """Return how it ended, if it has."""
        if self._over:
            return self._over if not self.living or time.monotonic() >= self._deadline else None
        if all(slot.failures >= HOPELESS for slot in self._slots):
            why = f"each of {len(self._slots)} workers died {HOPELESS} times in a row soon after its start"
            return Outcome(CommError.exit_code, f"{why}; the last: {self._last}")
        none_starts = self._stopping or all(slot.due == math.inf for slot in self._slots)
        return self._none_left() if none_starts and not self.living else None

    def _none_left(self) -> Outcome:
        """Return how it ended where no worker has said that it is over."""
        if not self._is_set(STOP) or (self._last and begun(self._store)):
            return Outcome(CommError.exit_code, f"no worker is left; the last: {self._last}", killed=True)
        said = UNBEGUN if not begun(self._store) else "stopped on request"
        return Outcome(Interrupted.exit_code, STOPPED_ELSEWHERE if self._manner.trouble else said)

    def _is_set(self, key: str) -> bool:
        with contextlib.suppress(RuntimeError):  # the store is another machine's, and gone: trouble, soon
            return self._store.add(key, 0) > 0
        return False

    def _said_by(self, name: str, code: int) -> str:
        """Return a worker's last words, without them the end of what it wrote to standard error."""
        if code < 0:
            return f"worker {name} was ended by {signal.Signals(-code).name}"
        for kind in ("says", "errors"):
            with contextlib.suppress(OSError):
                lines = (self._words / f"{name}.{kind}").read_text(errors="replace").strip().splitlines()
                if lines:
                    return lines[-1].removeprefix("swarmstep: ")
        return f"worker {name} ended with code {code} and said nothing" if code else ""

    def _tell_listener(self, kind: str, slot: _Slot, **more: Any) -> None:
        self._manner.listen({"kind": kind, "time": time.time(), "worker": slot.name, "slot": slot.number, **more})


def _temporary() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="swarmstep-")


def _common_environment() -> Mapping[str, str]:
    """Return what is the same for all workers, and for the process that they are forked from."""
    return {
        "OMP_NUM_THREADS": "1",
        "TORCH_CPP_LOG_LEVEL": "ERROR",  # what went wrong is said in one line
        **{name: value for name, value in os.environ.items() if name not in TORCHRUN},
        "GLOO_SOCKET_IFNAME": LOOPBACK,  # unless the place says otherwise
    }
