"""The command ``swarmstep compare``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from swarmstep.cli.json_output import Json, print_json, reserved_stdout
from swarmstep.cli.options import options_of, path
from swarmstep.cli.text import examples
from swarmstep.compare.settings import ComparisonSettings
from swarmstep.errors import ResultNotFinite

app = typer.Typer(add_completion=False)

EPILOG = examples(
    "swarmstep compare digits --out digits --target-accuracy 0.95",
    "swarmstep compare mnist --out mnist --every 16,64 --link 100mbit,5ms",
    "swarmstep compare mnist --out mnist --strategies diloco+lr=0.7,local-sgd",
    "swarmstep report digits mnist -o report.html",
)


@app.command("compare", epilog=EPILOG)
@options_of(ComparisonSettings)
def compare(
    context: typer.Context,
    out: Annotated[str, typer.Option(metavar="DIR", parser=path, help="folder for the results")],
    as_json: Json = False,
    **values: Any,
) -> int:
    """Find out which method reaches the accuracy you want soonest, on your network.

    Every method gets the same budget to tune its learning rate and its outer settings, on a validation split;
    then it runs once with each seed. Finished runs are kept in DIR and never repeated: the same command goes on
    where it was stopped, and another one adds to it. `swarmstep report DIR` makes a page of the results.
    """
    settings = ComparisonSettings(**values)
    from swarmstep.compare.analysis import analyse
    from swarmstep.compare.comparison import compare as carry_out
    from swarmstep.report import advice, markdown

    with reserved_stdout(as_json):
        found, counts = carry_out(settings, Path(out), shlex.join(["swarmstep", *context.obj]))
    sections = analyse([found])
    if as_json:
        print_json({**counts, **advice(sections)})
    else:
        failed = f", {counts['failed']} failed" if counts["failed"] else ""
        page = f"swarmstep report {shlex.quote(counts['out'])} -o report.html"
        print(f"{markdown(sections)}\n{counts['cells']} cells{failed}; as a page: {page}")
    if counts["runs"] and not counts["finite"]:
        raise ResultNotFinite(
            f"the comparison is done, but none of its {counts['runs']} runs has a finite test loss; look at the "
            "lines above, lower the rates with --lr-grid, or look at the data and the loss"
        )
    return 0
