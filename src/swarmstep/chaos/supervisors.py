"""Several supervisors of one run, each a process with some of the workers; any of them may be killed."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from swarmstep.chaos.etcd import Cluster
from swarmstep.chaos.supervisor_process import Spec
from swarmstep.comm.store import store_at
from swarmstep.errors import CommError
from swarmstep.launch.interpreter import module_command
from swarmstep.launch.processes import Outcome
from swarmstep.network.namespaces import Network


class Workers(Protocol):
    """What the injector and the runner need of a supervisor, or of several."""

    workers: int
    outcome: Outcome | None

    @property
    def living(self) -> dict[int, str]: ...
    @property
    def pids(self) -> dict[int, int]: ...
    def keys(self) -> int: ...
    def send_signal(self, worker: str, number: int) -> bool: ...
    def tell(self, word: str) -> None: ...
    def attend(self, seconds: float) -> Outcome | None: ...


class _Process:
    """One supervisor: its process, and what it has said."""

    def __init__(self, slots: Sequence[int], command: Sequence[str], errors: Path) -> None:
        self.slots, self.errors = [*slots], errors
        with errors.open("ab") as file:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=file, start_new_session=True
            )
        assert self.process.stdout
        os.set_blocking(self.process.stdout.fileno(), False)
        self._read = b""

    def said(self) -> list[dict[str, Any]]:
        """Return the rows that it has written since the last call."""
        assert self.process.stdout
        while data := self.process.stdout.read():
            self._read += data
        *lines, self._read = self._read.split(b"\n")
        return [json.loads(line) for line in lines]


class Supervisors:
    """Processes that supervise the workers of a run; a context manager, at whose end none of them is left.

    Args:
        arguments: of the workers' command line.
        workers: number of slots of all.
        count: number of supervisors; their shares of the slots differ by one at most.
        folder: of the run.
        store: which all of them use; the run has its folder's name there.
        network: of the workers; None for loopback.
        listen: called with each row that a supervisor writes.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        workers: int,
        count: int,
        folder: Path,
        store: Cluster,
        network: Network | None,
        listen: Callable[[dict[str, Any]], None],
    ) -> None:
        self.workers, self.outcome = workers, None
        self._arguments, self._folder, self._network, self._listen = [*arguments], folder, network, listen
        self._store, self._address = store, store.address(folder.name)
        self._shares = [[*range(workers)][number::count] for number in range(count)]
        self._processes = list[_Process]()
        self._living = dict[str, int]()  # worker -> pid
        self._last = dict.fromkeys(range(workers), -1)  # slot -> incarnation of its last worker

    outcome: Outcome | None

    def __enter__(self) -> Supervisors:
        with contextlib.ExitStack() as stack:
            stack.callback(self._end)
            for slots in self._shares:
                self._processes.append(self._start(slots))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def _end(self) -> None:
        for one in self._processes:
            one.process.kill()
            one.process.communicate()

    def _start(self, slots: Sequence[int]) -> _Process:
        place = self._network.place().environment if self._network else {}
        spec = Spec(
            arguments=self._arguments,
            folder=str(self._folder),
            errors=str(self._folder / "errors"),
            store=self._address,
            environment={**place, "SWARMSTEP_WORKERS": str(self.workers)},
            slots={str(slot): self._last[slot] for slot in slots},
            namespaces={str(slot): self._network.namespace(slot) for slot in slots} if self._network else {},
            parent=os.getpid(),
        )
        command = [*module_command("swarmstep.chaos.supervisor_process"), json.dumps(spec._asdict())]
        if self._network:
            command = ["ip", "netns", "exec", self._network.switch_namespace, *command]
        return _Process(slots, command, self._folder / "errors" / f"supervisor-{slots[0]}.errors")

    @property
    def living(self) -> dict[int, str]:
        """The name of the worker in each slot that has one."""
        return {int(name.partition(".")[0]): name for name in self._living}

    @property
    def pids(self) -> dict[int, int]:
        """The process id of the worker in each slot that has one."""
        return {int(name.partition(".")[0]): pid for name, pid in self._living.items()}

    def keys(self) -> int:
        """Return how many keys the store has; raise RuntimeError if it does not answer."""
        return self._store.call(lambda: store_at(self._address).connect(2.0).num_keys())

    @property
    def shares(self) -> list[dict[int, str]]:
        """The living workers of each supervisor that runs, by slot."""
        living = self.living
        return [{slot: living[slot] for slot in one.slots if slot in living} for one in self._processes]

    def send_signal(self, worker: str, number: int) -> bool:
        """Send a signal to the worker of this name; return whether it was still running."""
        try:
            os.kill(self._living[worker], number)
            return True
        except (KeyError, ProcessLookupError):
            return False

    def kill(self, index: int) -> list[str]:
        """Kill a supervisor; another takes its place. Return the workers that end with it."""
        one = self._processes[index]
        self._hear(one)
        victims = [name for slot, name in self.living.items() if slot in one.slots]
        one.process.kill()
        one.process.communicate()
        for name in victims:
            del self._living[name]
        self._processes[index] = self._start(one.slots)
        return victims

    def tell(self, word: str) -> None:
        """Tell all workers to "finish", through the store."""
        self._store.call(lambda: store_at(self._address).connect(30.0).set(f"swarmstep/{word}", "1"))

    def attend(self, seconds: float) -> Outcome | None:
        """Take note of what the supervisors say; return how the run has ended, None while it goes on."""
        for one in self._processes:
            self._hear(one)
        if all(one.process.poll() is not None for one in self._processes):
            self.outcome = self.outcome or Outcome(CommError.exit_code, "no supervisor is left")
            return self.outcome
        time.sleep(seconds)
        return self.outcome if self.outcome and self.outcome.code else None

    def _hear(self, one: _Process) -> None:
        for row in one.said():
            if row["kind"] == "outcome":
                self.outcome = self.outcome or Outcome(row["code"], row["message"])
                continue
            slot, name = int(row["slot"]), str(row["worker"])
            if row["kind"] == "started":
                self._living[name], self._last[slot] = row["pid"], int(name.partition(".")[2])
            elif row["kind"] == "ended":
                self._living.pop(name, None)
            self._listen(row)
        code = one.process.poll()
        if code is not None and code and not self.outcome:
            error = one.errors.read_text(errors="replace").strip().rpartition("\n")[2]
            self.outcome = Outcome(CommError.exit_code, f"a supervisor ended with code {code}: {error}")
