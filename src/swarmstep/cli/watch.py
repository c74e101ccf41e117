"""The command ``swarmstep watch``: a run that goes on elsewhere, from its files."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from swarmstep.cli.json_output import Json, print_json
from swarmstep.cli.options import path
from swarmstep.cli.text import examples

app = typer.Typer(add_completion=False)


@app.command("watch", epilog=examples("swarmstep watch", "swarmstep watch runs/mnist"))
def watch(
    folder: Annotated[
        str,
        typer.Argument(metavar="DIR", parser=path, help="a run's folder, or one with runs: the newest is shown"),
    ] = "runs",
    as_json: Json = False,
) -> int:
    """Show how far a run is, while it goes on in other processes or once it has ended. Ctrl-C ends the view only.

    With --json, waits for the end and prints the summary, null where the run was left before.
    """
    from swarmstep.cli.train import print_summary
    from swarmstep.train.watching import newest
    from swarmstep.train.watching import watch as shown

    run = newest(Path(folder))
    try:
        summary: dict[str, Any] | None = shown(run)
    except KeyboardInterrupt:
        print(f"the run goes on; watch it again with: swarmstep watch {shlex.quote(str(run))}")
        return 0
    if summary is None and not as_json:
        print(f"nobody trains in {run}; go on with: swarmstep train --resume {shlex.quote(str(run))}")
    elif summary is None:
        print_json(None)
    else:
        print_summary(summary, as_json=as_json)
    return 0
