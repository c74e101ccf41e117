"""Runs elastic workers: a supervisor, and the run's folder, which it holds for them."""

from __future__ import annotations

import faulthandler
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from swarmstep import waiting
from swarmstep.console import say
from swarmstep.elastic.supervisor import Supervisor, SupervisorOptions
from swarmstep.errors import UsageError
from swarmstep.launch.processes import Place
from swarmstep.launch.stopping import noting_interrupts
from swarmstep.train.run_folder import RunFolder

NOBODY_JOINED = (
    "{program} has ended, and none of its {workers} processes has joined the others: each was alone; join them by "
    "swarmstep.run(train), where train(comm) is your function, or start the program with python"
)


def supervise(
    arguments: Sequence[str],
    workers: int,
    folder: Path | None,
    place: Place | None = None,
    *,
    resume: bool = False,
    trouble: Callable[[], str | None] | None = None,
    program: str = "swarmstep",
) -> int:
    """Run ``python -m swarmstep ARGUMENTS`` as `workers` processes that are replaced when they die.

    The workers write to this process's output, and it reports each one that dies, and at the end why the run has
    failed if it has. The first interrupt asks the workers to stop, the second ends them.

    Args:
        arguments: of the command line, the same for all.
        workers: number of processes.
        folder: of the run, new or empty, or with `resume` that of an earlier run (None: it writes no files).
        place: where the workers run.
        resume: go on with the run that is in `folder`.
        trouble: as in `SupervisorOptions`.
        program: as in `ProcessSpec`.

    Returns:
        The exit code of the run.

    Raises:
        CheckpointError: the folder cannot be used.
        CommError: a worker could not be started.
        UsageError: the program has ended, and none of its processes has joined the others.
    """
    held = RunFolder(folder, resume=resume) if folder else None
    options = SupervisorOptions(shown=True, program=program, listen=_report_death, trouble=trouble)
    try:
        with (
            noting_interrupts() as interrupts,
            Supervisor(arguments, workers, folder, place, options) as supervisor,
        ):
            _tell_on_request(supervisor)
            while (outcome := supervisor.attend(0.2, interrupts)) is None:
                pass
            if outcome.code == 0 and program != "swarmstep" and not supervisor.joined:
                raise UsageError(NOBODY_JOINED.format(program=program, workers=workers))
    finally:
        if held:
            held.close()
    if outcome.message:
        saved = folder and any((folder / "checkpoints").glob("step-*"))
        advice = "; go on from the last checkpoint with --resume DIR" if outcome.killed and saved else ""
        say(outcome.message + advice)
    return outcome.code


def _tell_on_request(supervisor: Supervisor) -> None:
    """Have a signal ask what the workers wait for; it also says where this process is."""

    def request(*_: object) -> None:
        supervisor.stalls.requested = True

    signal.signal(waiting.STACKS, request)
    faulthandler.register(waiting.STACKS, 2, chain=True)


def _report_death(event: Mapping[str, Any]) -> None:
    if event.get("lost"):
        say(f"worker {event['worker']} is lost: {event['error']}")
