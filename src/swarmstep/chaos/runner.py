"""The runs of `swarmstep chaos`: supervised ones with and without faults, and simulated ones for comparison."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

from swarmstep.chaos.disk import Disk
from swarmstep.chaos.etcd import Cluster
from swarmstep.chaos.event_log import FaultLog, Tail, injected_faults
from swarmstep.chaos.growth import Growth
from swarmstep.chaos.injector import Injector
from swarmstep.chaos.means import Means
from swarmstep.chaos.replay import Replay
from swarmstep.chaos.run_record import RunRecord
from swarmstep.chaos.schedule import TABLE, ScheduledFault
from swarmstep.chaos.supervisors import Supervisors, Workers
from swarmstep.comm.store import store_at
from swarmstep.elastic.supervisor import Supervisor, SupervisorOptions
from swarmstep.errors import CommError, Interrupted
from swarmstep.launch.interpreter import module_command
from swarmstep.launch.processes import Outcome
from swarmstep.network.namespaces import Network
from swarmstep.train.run_folder import RunFolder

TICK = 0.02  # seconds
START_LIMIT = 120.0  # seconds until the first committed round
END_LIMIT = 120.0  # seconds from the order to finish until all workers have exited
PROGRESS_INTERVAL = 5.0  # seconds between two lines of progress
PARALLEL = 2  # simulated runs at once


@dataclasses.dataclass(frozen=True)
class RunContext:
    """What all runs share.

    Args:
        workers: number of workers.
        network: of the workers; None for loopback.
        interrupts: the first one ends everything.
        report: called with a line of progress now and then.
        store: an etcd that all runs use (None: each run has a store of its own).
        supervisors: how many there are, where there is an etcd.
    """

    workers: int
    network: Network | None
    interrupts: list[int]
    report: Callable[[str], None]
    store: Cluster | None = None
    supervisors: int = 1

    def check(self) -> None:
        """Raise Interrupted if the user asked to stop."""
        if self.interrupts:
            raise Interrupted("stopped on request, before there was a verdict; what was written is kept")


def run_supervised(
    arguments: Sequence[str],
    folder: Path,
    seconds: float,
    context: RunContext,
    faults: Sequence[ScheduledFault] = (),
) -> tuple[RunRecord, Outcome]:
    """Run workers under faults for a time from their first committed round, then let them finish.

    Args:
        arguments: the workers' command line.
        folder: of the run, new; with faults of the disk its checkpoints get a file system of their own.
        seconds: how long.
        context: of all runs.
        faults: to inject.

    Returns:
        The record of the run, and how it ended.

    Raises:
        CheckpointError: the folder cannot be used.
        Interrupted: the user asked to stop.
    """
    run_folder = RunFolder(folder)
    log = FaultLog(folder)
    with contextlib.ExitStack() as stack:
        stack.callback(run_folder.close)
        needs_disk = any(TABLE[fault.kind].strikes == "disk" for fault in faults)
        disk = stack.enter_context(Disk(folder / "checkpoints")) if needs_disk else None
        errors = folder / "errors"
        errors.mkdir()
        supervisor, replays = _supervised(arguments, folder, context, log, stack)
        injector = Injector(faults, Means(supervisor, log, context.network, disk, context.store, replays))
        outcome = _drive(injector, supervisor, seconds, context, log)
    return RunRecord(Tail(folder).new(), log.rows, injected_faults(log.rows), len(faults)), outcome


def _supervised(
    arguments: Sequence[str], folder: Path, context: RunContext, log: FaultLog, stack: contextlib.ExitStack
) -> tuple[Workers, Replay]:
    """Return what supervises the workers, by then entered, and what repeats messages in their store."""
    network, cluster = context.network, context.store
    if cluster:
        several = Supervisors(arguments, context.workers, context.supervisors, folder, cluster, network, log.add)
        address = store_at(cluster.address(folder.name))
        replays = Replay(lambda task: cluster.call(lambda: task(address.connect(START_LIMIT))))
        return stack.enter_context(several), replays
    place = network.place() if network else None
    options = SupervisorOptions(listen=log.add, errors=folder / "errors")
    one = stack.enter_context(Supervisor(arguments, context.workers, folder, place, options))
    return one, Replay(lambda task: task(one.store))


def _drive(injector: Injector, supervisor: Workers, seconds: float, context: RunContext, log: FaultLog) -> Outcome:
    """Wait for the first round, inject faults for `seconds`, and let the workers finish; return how they ended."""
    deadline = time.monotonic() + START_LIMIT
    while not injector.round:
        injector.read_events()
        if outcome := _attend(supervisor, context, deadline, "the first committed round"):
            return outcome
    started, last_report, growth = time.monotonic(), 0.0, Growth(log.folder, supervisor)
    log.write("began")
    while (now := time.monotonic() - started) < seconds:
        injector.tick(now)
        growth.sample()
        if _attend(supervisor, context):
            break
        if now - last_report >= PROGRESS_INTERVAL:
            last_report = now
            healthy = f"{len(injector.healthy)} of {context.workers} workers healthy"
            progress = f"{now:.0f} of {seconds:.0f} s, round {injector.round}"
            context.report(f"{progress}, {healthy}, {injector.injected} faults")
    injector.end()
    log.write("finish")
    if not supervisor.outcome:
        supervisor.tell("finish")
    deadline = time.monotonic() + END_LIMIT
    while not (outcome := _attend(supervisor, context, deadline, "the end of the workers")):
        pass
    log.write("ended all", code=outcome.code, message=outcome.message)
    return outcome


def _attend(
    supervisor: Workers, context: RunContext, deadline: float | None = None, awaited: str = ""
) -> Outcome | None:
    context.check()
    if deadline is not None and time.monotonic() >= deadline:
        return Outcome(CommError.exit_code, f"waited too long for {awaited}; see the folder of the run")
    return supervisor.attend(TICK)


def simulated_losses(
    arguments: Sequence[str], seeds: Sequence[int], folder: Path, context: RunContext
) -> list[float]:
    """Simulate the run without processes and faults, once with each seed; return the test losses.

    Args:
        arguments: of ``swarmstep train``, without --seed and --out.
        seeds: of the runs.
        folder: for the folders of the runs.
        context: of all runs.

    Raises:
        CommError: a run failed.
        Interrupted: the user asked to stop.
    """
    losses: dict[int, float] = {}
    waiting = [*seeds]
    running: dict[int, tuple[subprocess.Popen[bytes], IO[bytes]]] = {}
    try:
        while len(losses) < len(seeds):
            context.check()
            while waiting and len(running) < PARALLEL:
                seed = waiting.pop(0)
                running[seed] = _start_simulation([*arguments, "--seed", str(seed)], _folder(folder, seed))
            for seed, (process, errors) in [*running.items()]:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.1)
                    context.check()  # what asked this process to stop may have asked that one, too
                    losses[seed] = _loss(_folder(folder, seed), process.returncode, errors)
                    del running[seed]
                    context.report(f"fault-free run with seed {seed}: test loss {losses[seed]:.4f}")
    finally:
        for process, errors in running.values():
            process.kill()
            process.wait()
            errors.close()
    return [losses[seed] for seed in seeds]


def _folder(folder: Path, seed: int) -> Path:
    return folder / f"fault-free-{seed}"


def _start_simulation(arguments: Sequence[str], out: Path) -> tuple[subprocess.Popen[bytes], IO[bytes]]:
    """Start a simulated run with low priority; return it with the file of its standard error."""
    errors = out.with_suffix(".errors").open("w+b")
    process = subprocess.Popen(
        [*module_command("swarmstep"), *arguments, "--out", str(out)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "SWARMSTEP_LAUNCHER": str(os.getpid())},  # ends with this one
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=errors,
        start_new_session=True,  # a keyboard interrupt is for this process
    )
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, process.pid, 19)
    return process, errors


def _loss(out: Path, code: int, errors: IO[bytes]) -> float:
    with errors:
        errors.seek(0)
        last_line = errors.read().decode(errors="replace").strip().split("\n")[-1]
    if code:
        raise CommError(f"the fault-free run {out} ended with code {code}: {last_line}")
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
