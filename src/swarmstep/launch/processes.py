"""Starts W processes on this machine, as torchrun does, and reports for them."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from swarmstep.comm.process_groups import LOOPBACK, serve_store
from swarmstep.console import say
from swarmstep.errors import CommError
from swarmstep.launch.interpreter import module_command
from swarmstep.launch.stopping import blocked, noting_interrupts

GRACE = 10.0  # seconds that workers have to end by themselves once one of them has failed
HASTE = 2.0  # the same where there is nothing to wait for
TORCHRUN = (  # what torchrun sets, and what is read here
    *("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    "TORCHELASTIC_RUN_ID",
)


@dataclasses.dataclass(frozen=True)
class Place:
    """Where workers run. The default is this machine's loopback interface.

    Args:
        command: called as command(rank, command); returns the command that runs it there, in a network namespace,
            say.
        environment: variables that differ there: MASTER_ADDR, GLOO_SOCKET_IFNAME ...
        serve: called for each group; returns a store that the workers reach at MASTER_ADDR, and its port.
        namespace: called with the number of a supervisor's slot; returns the network namespace that its worker
            enters (None: workers stay where the supervisor is).
        store: the address of a store that exists, for `swarmstep.comm.store.store_at`, in place of what `serve`
            returns (empty: none).
    """

    command: Callable[[int, list[str]], list[str]] = lambda rank, command: command
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict[str, str])
    serve: Callable[[], tuple[object, int]] = serve_store
    namespace: Callable[[int], str] | None = None
    store: str = ""


class Outcome(NamedTuple):
    """How a group of workers has ended.

    Args:
        code: an exit code of the command.
        message: why, in one line; empty if all went well.
        killed: a worker was ended by a signal that was not sent from here.
    """

    code: int
    message: str
    killed: bool = False


def launch(arguments: Sequence[str], workers: int, place: Place | None = None) -> int:
    """Run ``python -m swarmstep ARGUMENTS`` as `workers` processes and return the exit code of the run.

    Rank 0 writes to this process's output; of the workers' errors only the cause is shown. The first interrupt
    asks the workers to stop, the second ends them.

    Args:
        arguments: of the command line, the same for all.
        workers: number of processes.
        place: where they run.
    """
    with noting_interrupts() as interrupts:
        outcome = run_group(arguments, workers, place, interrupts=interrupts, shown=True)
    if outcome.message:
        advice = "; go on from the last checkpoint with --resume DIR" if outcome.killed else ""
        say(f"{outcome.message}{advice}")
    return outcome.code


def run_group(
    arguments: Sequence[str],
    workers: int,
    place: Place | None = None,
    *,
    interrupts: list[int],
    patience: float | None = None,
    ask: signal.Signals = signal.SIGINT,
    shown: bool = False,
) -> Outcome:
    """Run ``python -m swarmstep ARGUMENTS`` as `workers` processes until all have ended.

    The store is served by this process, which outlives them all.

    Args:
        arguments: of the command line, the same for all.
        workers: number of processes.
        place: where they run.
        interrupts: as `noting_interrupts` yields; the first is passed on, the second ends the workers.
        patience: seconds after which processes that still run are ended (None: never).
        ask: the signal by which the first is passed on.
        shown: whether rank 0 writes to this process's output; else all output is discarded.

    Raises:
        CommError: a worker could not be started.
    """
    place = place or Place()
    store, port = place.serve()
    with tempfile.TemporaryDirectory(prefix="swarmstep-") as name:
        folder = Path(name)
        processes: list[subprocess.Popen[bytes]] = []
        try:
            for rank in range(workers):
                command = place.command(rank, [*module_command("swarmstep"), *arguments])
                environment = _rank_environment(rank, workers, port, folder) | dict(place.environment)
                errors = None if shown and rank == 0 else folder / f"{rank}.errors"
                processes.append(_start(command, environment, errors))
            _wait(processes, interrupts, patience, ask)
            codes = [process.poll() for process in processes]
        finally:
            for process in processes:
                process.kill()
                process.wait()
        del store
        return _outcome(codes, folder, bool(interrupts), patience)


def worker_environment() -> dict[str, str]:
    """Return what is the same in the environment of all workers on this machine."""
    return {
        "OMP_NUM_THREADS": "1",
        "TORCH_CPP_LOG_LEVEL": "ERROR",  # swarmstep says what went wrong, in one line
        **{name: value for name, value in os.environ.items() if name not in TORCHRUN},
        "GLOO_SOCKET_IFNAME": LOOPBACK,  # whatever is inherited: no other machine is to reach them
    }


def _rank_environment(rank: int, workers: int, port: int, folder: Path) -> dict[str, str]:
    """Return the environment of a worker that leaves its error in a file of `folder`."""
    return {
        **worker_environment(),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(workers),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # this process serves the store, not rank 0
        "SWARMSTEP_LAUNCHER": str(os.getpid()),
        "SWARMSTEP_SAYS": str(folder / f"{rank}.says"),
    }


def _start(command: list[str], environment: Mapping[str, str], errors: Path | None) -> subprocess.Popen[bytes]:
    """Start a worker; without a file for its errors it writes where this process writes."""
    try:
        with errors.open("wb") if errors else contextlib.nullcontext() as file, blocked():
            return subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL if errors else None,
                stderr=file,
                start_new_session=True,  # an interrupt from the keyboard reaches it through this process only
            )
    except OSError as error:
        raise CommError(f"{command[0]}: {error.strerror}; the worker could not be started") from None


def _wait(
    processes: Sequence[subprocess.Popen[bytes]], interrupts: list[int], patience: float | None, ask: int
) -> None:
    """Wait until all have ended: at most `patience` seconds, briefly after a failure, until a second interrupt."""
    asked = False
    deadline = time.monotonic() + (math.inf if patience is None else patience)
    # All are polled each time: a later one may have failed while the first lives on.
    while None in (codes := [process.poll() for process in processes]) and time.monotonic() < deadline:
        if any(codes):
            deadline = min(deadline, time.monotonic() + GRACE)
        if len(interrupts) > 1:
            return
        if interrupts and not asked:
            asked = True
            for process in processes:
                process.send_signal(ask)
        time.sleep(0.02)


def _outcome(codes: Sequence[int | None], folder: Path, interrupted: bool, patience: float | None) -> Outcome:
    """Return how the workers have ended.

    Args:
        codes: their exit codes; None for one that did not end by itself.
        folder: where their errors are.
        interrupted: somebody asked to stop.
        patience: seconds that they had.
    """
    killed = [(rank, code) for rank, code in enumerate(codes) if code is not None and code < 0]
    failed = {rank: code for rank, code in enumerate(codes) if code is not None and code > 0}
    if killed and not interrupted:
        message = ", ".join(f"rank {rank} was ended by {signal_name(code)}" for rank, code in killed)
        return Outcome(CommError.exit_code, message, killed=True)
    if failed:
        cause = next((rank for rank, code in failed.items() if code != CommError.exit_code), min(failed))
        return Outcome(failed[cause], _error_of(cause, folder))
    if all(code == 0 for code in codes):
        return Outcome(0, "")
    if interrupted:
        return Outcome(130, "ended at once on request; nothing was saved since the last checkpoint")
    late = f"the workers were not done after {patience:g} s; a longer wait is set with --patience SECONDS"
    return Outcome(CommError.exit_code, late)


def _error_of(rank: int, folder: Path) -> str:
    """Return the error of a worker; empty if it wrote to this process's output, which all have seen."""
    shown = not (folder / f"{rank}.says").exists() and not (folder / f"{rank}.errors").exists()
    return last_line(folder, str(rank)) or ("" if shown else f"rank {rank} failed and said nothing")


def last_line(folder: Path, worker: str) -> str:
    """Return a worker's error message, else the last line of its standard error; empty if it left neither.

    Args:
        folder: holds the files WORKER.says and WORKER.errors, if they exist.
        worker: its rank or name.
    """
    for kind in ("says", "errors"):
        with contextlib.suppress(OSError):
            lines = (folder / f"{worker}.{kind}").read_text(errors="replace").strip().splitlines()
            if lines:
                return lines[-1].removeprefix("swarmstep: ")
    return ""


def signal_name(code: int) -> str:
    """Return the name of the signal that ended a process with this exit code, below 0."""
    return signal.Signals(-code).name
