"""The command ``swarmstep chaos``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from swarmstep.chaos.schedule import ABOUT, QUIET
from swarmstep.chaos.settings import ChaosSettings
from swarmstep.cli.json_output import Json, print_json, reserved_stdout
from swarmstep.cli.options import options_of, path
from swarmstep.cli.text import examples

app = typer.Typer(add_completion=False)

_KINDS = "\n".join(f"  {kind:10} {about}" for kind, about in ABOUT.items())
HELP = f"""Train with real processes while a seeded schedule of faults strikes them, and say what was lost.

Kinds of faults:
{_KINDS}

The last {QUIET:g} s are free of faults, so that the last victims can come back. A fault whose victim is not a
healthy member strikes the next healthy one; one that would leave fewer than two healthy members waits. Before it,
the same run goes without faults for a while; after it, simulated runs without faults take as many steps. Both are
what it is compared with.

DIR holds everything: storm/storm.jsonl the faults, storm/events/ what each worker did, storm/growth.jsonl what
each process and the store hold, from which a longer run says whether they grow. Only the checkpoints of a run
with faults of disks are not kept: they are on a file system of their own, which is removed after the run.

Exits with 0 if nothing was lost, and with 1 otherwise.
"""
EPILOG = examples(
    "swarmstep chaos digits --workers 4 --minutes 2",
    "sudo swarmstep chaos mnist --faults-per-hour 600 --kinds kill,cut",
    "sudo swarmstep chaos mnist --store etcd --balance time --when time:1.6 --together 0.2",
)


@app.command("chaos", help=HELP, epilog=EPILOG)
@options_of(ChaosSettings)
def chaos(
    out: Annotated[
        str | None,
        typer.Option(metavar="DIR", parser=path, help="new folder for it all (default: one below runs/)"),
    ] = None,
    as_json: Json = False,
    **values: Any,
) -> int:
    """Carry out a trial and print its verdict."""
    settings = ChaosSettings(**values)
    from swarmstep.chaos.trial import run_trial
    from swarmstep.chaos.verdict_text import verdict_text

    with reserved_stdout(as_json):
        summary, folder = run_trial(settings, Path(out) if out else None)
    if as_json:
        print_json(summary)
    else:
        print(f"{verdict_text(summary)}\nfiles in {folder}")
    return 0 if summary["good"] else 1
