"""A hunt for elastic runs that do not end: short ones under load, whose workers are killed and stopped by a seed.

Each run is `swarmstep train digits` with three workers, under a supervisor in this process. A seed draws its
options, and when which worker is killed, stopped for a while, or starved (stopped and continued in short turns):
at any time, soon after its start, or as the run ends. A run that has not ended in time is a stall: the stacks of
all its workers are written into its folder, and the hunt ends.

Run it with: python tests/support/stall_hunt.py --runs 100 --load 2
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

from swarmstep.elastic import supervisor as supervisor_module
from swarmstep.elastic.supervisor import Supervisor, SupervisorOptions
from swarmstep.launch.fork_server import ForkServer
from swarmstep.launch.processes import worker_environment
from swarmstep.train.run_folder import RunFolder

WORKERS = 3
LIMIT = 120.0  # seconds within which a run must end after its last fault
METHODS = (
    "--strategy local-sgd",
    "--strategy swarm",
    "--strategy local-sgd --delay 2",
    "--strategy diloco --fragments 2",
    "--strategy pso-ps",
)


def options_of(rng: random.Random) -> list[str]:
    """Return the options of a run."""
    every = rng.choice([2, 4, 8])
    options = f"{rng.choice(METHODS)} --every {every} --silence {rng.choice([2, 5])} --seed {rng.randrange(100)}"
    options += f" --steps {every * rng.randint(3, 15)} --pace {rng.choice([0.0, 0.01, 0.05])}"
    if rng.random() < 0.5:
        options += f" --eval-every {every} --checkpoint-every {every}"
    return options.split()


class Faults:
    """What is done to the workers of a run."""

    def __init__(self, supervisor: Supervisor, rng: random.Random) -> None:
        self._supervisor, self._rng = supervisor, rng
        self._due = [(time.monotonic() + rng.uniform(0.0, 8.0), "any") for _ in range(rng.randint(1, 6))]
        self._nervous = rng.choice([0.0, 0.0, 0.3])  # probability that a worker is struck soon after its start
        self._hurried = rng.choice([0.0, 0.5])  # that the others are as one reports the end
        self.last = time.monotonic()

    def listen(self, event: dict[str, Any]) -> None:
        """Note what the supervisor says of its workers."""
        probability = self._nervous if event["kind"] == "started" else self._hurried
        if self._rng.random() < probability:
            self._due.append((time.monotonic() + self._rng.expovariate(2.0), event["worker"]))

    def tick(self) -> None:
        """Do what is due."""
        for when, worker in [*self._due]:
            if when <= time.monotonic():
                self._due.remove((when, worker))
                living = [*self._supervisor.living.values()]
                if living:
                    self._strike(worker if worker in living else self._rng.choice(living))

    def _strike(self, worker: str) -> None:
        kind = self._rng.choice(["kill", "kill", "stop", "starve"])
        self.last = time.monotonic()
        if kind == "kill":
            self._supervisor.send_signal(worker, signal.SIGKILL)
            return
        turns, seconds = (1, self._rng.expovariate(0.5)) if kind == "stop" else (15, 0.2)
        with contextlib.suppress(OSError):
            pid = next(pid for slot, pid in self._supervisor.pids.items() if worker.startswith(f"{slot}."))
            code = f"for _ in range({turns}):\n os.kill({pid}, 19)\n time.sleep({seconds})\n os.kill({pid}, 18)\n"
            code += " time.sleep(0.02)\n"
            subprocess.Popen([sys.executable, "-ISc", f"import os, time\n{code}"], stderr=subprocess.DEVNULL)


def run_once(seed: int, folder: Path, server: ForkServer, py_spy: str | None) -> str:
    """Carry out a run; return what went wrong (empty: nothing)."""
    rng = random.Random(seed)
    options = options_of(rng)
    arguments = ["train", "digits", "--workers", str(WORKERS), "--elastic", "local", "--backend", "gloo"]
    arguments += [*options, "--out", str(folder)]
    RunFolder(folder).close()
    errors = folder / "errors"
    errors.mkdir()
    faults: list[Faults] = []
    events: list[dict[str, Any]] = []

    def listen(event: dict[str, Any]) -> None:
        events.append(event)
        for one in faults:
            one.listen(event)

    chosen = SupervisorOptions(listen=listen, errors=errors)
    with (
        mock.patch.object(supervisor_module, "ForkServer", return_value=contextlib.nullcontext(server)),
        Supervisor(arguments, WORKERS, folder, options=chosen) as supervisor,
    ):
        faults.append(Faults(supervisor, rng))
        while not (outcome := supervisor.attend(0.02)):
            faults[0].tick()
            if time.monotonic() > faults[0].last + LIMIT:
                (folder / "supervisor.jsonl").write_text("\n".join(map(json.dumps, events)))
                _dump(folder, supervisor, py_spy)
                return f"seed {seed}: no end after {LIMIT:g} s, {' '.join(options)}; stacks in {folder}"
        left = dict(supervisor.pids)
    for pid in left.values():
        server.send_signal(pid, signal.SIGKILL)
    while left and server.ended(5.0):
        left = {slot: pid for slot, pid in left.items() if Path(f"/proc/{pid}").exists()}
    slow = time.monotonic() - faults[0].last
    late = f", {slow:.0f} s after the last fault" if slow > LIMIT / 3 else ""
    return f"seed {seed}: {outcome.code} {outcome.message}{late}" if outcome.code or late else ""


def _dump(folder: Path, supervisor: Supervisor, py_spy: str | None) -> None:
    """Write down where all workers of a run are: in stacks.txt, and with py-spy also outside of Python."""
    for pid in supervisor.pids.values() if py_spy else ():
        with (folder / "py-spy.txt").open("a") as file:
            command = [str(py_spy), "dump", "--native", "--pid", str(pid)]
            subprocess.run(command, stdout=file, stderr=file, timeout=60, check=False)
    supervisor.stalls.requested = True
    end = time.monotonic() + 5.0
    while time.monotonic() < end:
        supervisor.attend(0.1)


def main() -> None:
    parser = argparse.ArgumentParser(description="Hunt for elastic runs that do not end.")
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--load", type=int, default=0, help="processes that compute beside")
    parser.add_argument("--keep", help="folder for the runs that stall")
    parser.add_argument("--py-spy", default=shutil.which("py-spy"))
    given = parser.parse_args()
    keep = Path(given.keep or tempfile.mkdtemp(prefix="stalls-"))
    load = [subprocess.Popen([sys.executable, "-ISc", "while True: pass"]) for _ in range(given.load)]
    began = time.monotonic()
    try:
        with ForkServer(worker_environment()) as server:
            for seed in range(given.first, given.first + given.runs):
                folder = keep / str(seed)
                said = run_once(seed, folder, server, given.py_spy)
                print(f"{seed - given.first + 1} runs, {time.monotonic() - began:.0f} s {said}", flush=True)
                if "no end" in said:
                    sys.exit(1)
                if not said:
                    shutil.rmtree(folder)
    finally:
        for process in load:
            process.kill()
            process.wait()


if __name__ == "__main__":
    main()
