"""The command ``swarmstep sample``: a trained text model writes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from swarmstep.cli.json_output import Json, print_json
from swarmstep.cli.options import options_of, path
from swarmstep.cli.text import examples
from swarmstep.console import say
from swarmstep.train.sampling import SampleSettings, write

app = typer.Typer(add_completion=False)

EPILOG = examples(
    "swarmstep sample runs/text-swarm-n16-w4-s0",
    "swarmstep sample runs/text-swarm-n16-w4-s0 --prompt 'class ' --temperature 0.5 --tokens 1000",
)


@app.command("sample", epilog=EPILOG)
@options_of(SampleSettings)
def sample(
    run: Annotated[str, typer.Argument(metavar="RUN", parser=path, help="folder of a run of the workload text")],
    as_json: Json = False,
    **values: Any,
) -> int:
    """Let a trained text model write, several bytes in a sweep.

    The text is that of writing one byte after the other with the same seed, whatever the window. Says on standard
    error how many sweeps it took.
    """
    settings = SampleSettings(**values)
    found = write(Path(run), settings)
    text = found.text.decode(errors="replace")
    if as_json:
        print_json({"run": run, "text": text, "sweeps": found.sweeps, "seconds": found.seconds})
    else:
        print(settings.prompt + text)
        say(f"{settings.tokens} bytes in {found.sweeps} sweeps, {found.seconds:.2f} s")
    return 0
