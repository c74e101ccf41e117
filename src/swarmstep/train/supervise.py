"""Runs an elastic training run: a supervisor over its workers, and the folder that it holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from swarmstep.console import say
from swarmstep.elastic.supervisor import Supervisor, SupervisorOptions
from swarmstep.launch.processes import Place, noting_interrupts
from swarmstep.train.run_folder import RunFolder


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

    The workers write to this process's output; it adds a line for each that dies, and at the end the cause if the
    run has failed. The first interrupt asks them to stop, the second ends them.

    Args:
        arguments: of the command line, the same for all.
        workers: how many.
        folder: of the run, new or empty, or with `resume` that of an earlier run (None: it writes no files).
        place: where.
        resume: go on with the run that is there.
        trouble: as of a `SupervisorOptions`.
        program: as of a `ProcessSpec`.

    Returns:
        The exit code of the run.

    Raises:
        CheckpointError: the folder cannot be used.
        CommError: a worker could not be started.
    """
    held = RunFolder(folder, resume=resume) if folder else None
    manner = SupervisorOptions(shown=True, program=program, listen=_say_deaths, trouble=trouble)
    try:
        with (
            noting_interrupts() as interrupts,
            Supervisor(arguments, workers, folder, place, manner) as supervisor,
        ):
            while (outcome := supervisor.attend(0.2, interrupts)) is None:
                pass
    finally:
        if held:
            held.close()
    if outcome.message:
        saved = folder and any((folder / "checkpoints").glob("step-*"))
        advice = "; go on from the last checkpoint with --resume DIR" if outcome.killed and saved else ""
        say(outcome.message + advice)
    return outcome.code


def _say_deaths(event: Mapping[str, Any]) -> None:
    if event.get("lost"):
        say(f"worker {event['worker']} is lost: {event['said']}")
