"""The runs of `swarmstep chaos`: one through a storm, one without, and simulated ones to compare the loss with."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

from swarmstep.chaos.disk import Disk
from swarmstep.chaos.event_log import Log, Tail, struck
from swarmstep.chaos.injector import Injector
from swarmstep.chaos.schedule import ScheduledFault
from swarmstep.chaos.verdict import Ride
from swarmstep.elastic.supervisor import Supervisor, SupervisorOptions
from swarmstep.errors import CommError, Interrupted
from swarmstep.launch.processes import Outcome
from swarmstep.network.namespaces import Network
from swarmstep.train.run_folder import RunFolder

TICK = 0.02  # seconds
START_LIMIT = 120.0  # seconds until the first committed round
END_LIMIT = 120.0  # seconds from the word "finish" to the end of all workers
AT_ONCE = 2  # simulated runs

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Ground:
    """Where runs happen.

    `workers`: how many; `network`: theirs (None: loopback); `interrupts`: the first ends it all; `say`: is given
    a line now and then.
    """

    workers: int
    network: Network | None
    interrupts: list[int]
    say: Say

    def check(self) -> None:
        """Raise Interrupted if somebody asked to stop."""
        if self.interrupts:
            raise Interrupted("stopped on request, before there was a verdict; what was written is kept")


def ride(
    arguments: Sequence[str],
    folder: Path,
    seconds: float,
    ground: Ground,
    faults: Sequence[ScheduledFault] = (),
) -> tuple[Ride, Outcome]:
    """Run workers for so many seconds from their first committed round, under these faults, and let them finish.

    Args:
        arguments: of the workers' command line.
        folder: of the run, new; with "disk" among the faults its checkpoints have a file system of their own.
        seconds: how long.
        ground: where.
        faults: what goes wrong, and when.

    Returns:
        What the run's files tell, and how it ended.

    Raises:
        CheckpointError: the folder cannot be used.
        Interrupted: somebody asked to stop.
    """
    held = RunFolder(folder)
    log = Log(folder)
    with contextlib.ExitStack() as stack:
        stack.callback(held.close)
        full = any(fault.kind == "disk" for fault in faults)
        disk = stack.enter_context(Disk(folder / "checkpoints")) if full else None
        place = ground.network.place() if ground.network else None
        words = folder / "words"
        words.mkdir()
        manner = SupervisorOptions(listen=log.add, words=words)
        supervisor = stack.enter_context(Supervisor(arguments, ground.workers, folder, place, manner))
        storm = Injector(faults, supervisor, log, ground.network, disk)
        outcome = _weather(storm, supervisor, seconds, ground, log)
    return Ride(Tail(folder).new(), log.rows, struck(log.rows), len(faults)), outcome


def _weather(storm: Injector, supervisor: Supervisor, seconds: float, ground: Ground, log: Log) -> Outcome:
    """Let the storm pass over the workers; return how they ended."""
    limit = time.monotonic() + START_LIMIT
    while not storm.round:
        storm.look()
        if outcome := _attended(supervisor, ground, limit, "the first committed round"):
            return outcome
    began, shown = time.monotonic(), 0.0
    log.write("began")
    while (now := time.monotonic() - began) < seconds:
        storm.tick(now)
        if outcome := _attended(supervisor, ground):
            break
        if now - shown >= 5.0:
            shown = now
            healthy = f"{len(storm.healthy)} of {ground.workers} workers healthy"
            ground.say(f"{now:.0f} of {seconds:.0f} s, round {storm.round}, {healthy}, {storm.struck} faults")
    storm.end()
    log.write("finish")
    if not supervisor.outcome:
        supervisor.tell("finish")
    limit = time.monotonic() + END_LIMIT
    while not (outcome := _attended(supervisor, ground, limit, "the workers' end")):
        pass
    log.write("ended all", code=outcome.code, said=outcome.message)
    return outcome


def _attended(
    supervisor: Supervisor, ground: Ground, limit: float | None = None, what: str = ""
) -> Outcome | None:
    ground.check()
    if limit is not None and time.monotonic() >= limit:
        return Outcome(CommError.exit_code, f"waited too long for {what}; the run's folder may tell why")
    return supervisor.attend(TICK)


def simulated_losses(arguments: Sequence[str], seeds: Sequence[int], folder: Path, ground: Ground) -> list[float]:
    """Run the same without processes and faults, once with each seed; return the test losses.

    Args:
        arguments: of ``swarmstep train``, without --seed and --out.
        seeds: of the runs.
        folder: for their folders.
        ground: for `say` and `interrupts`.

    Raises:
        CommError: one of them failed.
        Interrupted: somebody asked to stop.
    """
    losses: dict[int, float] = {}
    waiting = [*seeds]
    running: dict[int, tuple[subprocess.Popen[bytes], IO[bytes]]] = {}
    try:
        while len(losses) < len(seeds):
            ground.check()
            while waiting and len(running) < AT_ONCE:
                seed = waiting.pop(0)
                running[seed] = _simulation([*arguments, "--seed", str(seed)], folder / f"fault-free-{seed}")
            for seed, (process, errors) in [*running.items()]:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.1)
                    losses[seed] = _loss(folder / f"fault-free-{seed}", process.returncode, errors)
                    del running[seed]
                    ground.say(f"fault-free run with seed {seed}: test loss {losses[seed]:.4f}")
    finally:
        for process, errors in running.values():
            process.kill()
            process.wait()
            errors.close()
    return [losses[seed] for seed in seeds]


def _simulation(arguments: Sequence[str], out: Path) -> tuple[subprocess.Popen[bytes], IO[bytes]]:
    """Start a simulated run at low priority."""
    errors = out.with_suffix(".errors").open("w+b")
    process = subprocess.Popen(
        [sys.executable, "-m", "swarmstep", *arguments, "--out", str(out)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "SWARMSTEP_LAUNCHER": str(os.getpid())},  # ends with this one
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=errors,
        start_new_session=True,  # an interrupt from the keyboard is for this process
    )
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, process.pid, 19)
    return process, errors


def _loss(out: Path, code: int, errors: IO[bytes]) -> float:
    with errors:
        errors.seek(0)
        said = errors.read().decode(errors="replace").strip().split("\n")[-1]
    if code:
        raise CommError(f"the fault-free run {out} ended with code {code}: {said}")
    loss = loss_of(out)
    assert loss is not None
    return loss


def loss_of(folder: Path) -> float | None:
    """Return the test loss of the run in a folder; None if it has none."""
    try:
        summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
        return None if summary["test_loss"] is None else float(summary["test_loss"])
    except (OSError, ValueError, KeyError):
        return None
