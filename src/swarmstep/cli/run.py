"""The command ``swarmstep run``: a training program of one's own, in workers that may be lost and come back."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated

import typer

from swarmstep.cli.json_output import Json, print_json, reserved_stdout
from swarmstep.cli.options import whole_number
from swarmstep.cli.text import examples
from swarmstep.errors import UsageError

app = typer.Typer(add_completion=False)

EPILOG = examples(
    "swarmstep run my.py",
    "swarmstep run --workers 8 train.py --epochs 3",
    "swarmstep run --store etcd://10.0.0.1:2379,10.0.0.2:2379,10.0.0.3:2379/mine train.py",
)


@app.command("run", epilog=EPILOG, context_settings={"allow_interspersed_args": False})
def run(
    program: Annotated[str, typer.Argument(metavar="PROGRAM.py", help="the program")],
    arguments: Annotated[list[str] | None, typer.Argument(metavar="ARGUMENTS", help="its arguments")] = None,
    workers: Annotated[int, typer.Option(metavar="W", parser=whole_number, help="number of processes")] = 4,
    store: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="keep the store in etcd://HOST:PORT,.../RUN and take part in RUN; give the same command on each "
            "machine (docs/reliability.md)",
        ),
    ] = None,
    as_json: Json = False,
) -> int:
    """Run a Python program of your own as W processes, and start again those that die.

    Each process joins the others with `swarmstep.run(train)`, which calls your function train(comm). A process
    that ends with exit code 0 says that the run is over. Ctrl-C asks them to stop, which ends `sync.until` after
    the next Round (`event.decision.stop`); Ctrl-C again ends them. Options that stand after the program are the
    program's own. Exits with the code of the run. With --json, what the processes print goes to standard error.
    """
    path = Path(program).expanduser()
    if path.suffix != ".py" or not path.is_file():
        found = program if path.exists() else f"no file {program}"
        raise UsageError(f"run: expected a Python program that ends in .py, found {found}")
    if not 1 <= workers <= 1000:
        raise UsageError(f"--workers: expected 1 to 1000, found {workers}")
    from swarmstep.train.shared_store import attached, program_settings
    from swarmstep.train.supervise import supervise

    with reserved_stdout(as_json), contextlib.ExitStack() as stack:
        place = None
        if store:
            place = stack.enter_context(attached(store, program_settings(path, arguments or [])))
        code = supervise(arguments or [], workers, None, place, program=str(path.absolute()))
    if as_json:
        print_json({"program": program, "arguments": arguments or [], "workers": workers, "exit_code": code})
    return code
