"""The command ``swarmstep report``: results in, a page or a table out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, get_args

import typer

from swarmstep.cli.json_output import Json, print_json
from swarmstep.cli.options import one_of, path
from swarmstep.cli.text import examples

Form = Literal["html", "md", "csv", "json"]

app = typer.Typer(add_completion=False)

EPILOG = examples(
    "swarmstep report results -o report.html",
    "swarmstep report results other-results --format md",
    "swarmstep report runs/mnist runs/mnist-2",
)


@app.command("report", epilog=EPILOG)
def report(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE",
            parser=path,
            help="folders of finished runs or of `compare`, or files that `report --format json` wrote",
        ),
    ],
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            parser=path,
            help="where to (default: report.html, or standard output for md, csv and json)",
        ),
    ] = None,
    form: Annotated[
        Form | None,
        typer.Option(
            "--format",
            metavar="FORMAT",
            parser=one_of(Form),
            help="html, md, csv or json (default: by the name of FILE, otherwise html)",
        ),
    ] = None,
    title: Annotated[
        str | None, typer.Option(metavar="TEXT", help="of the page (default: that of the first source)")
    ] = None,
    as_json: Json = False,
) -> int:
    """Make a page, or a table, of runs and comparisons.

    With --json, says where it is: {"format": ..., "file": ..., "text": ...}; without FILE the text is in it.
    """
    from swarmstep.train.run_folder import replace_file

    file = Path(output) if output else None
    suffix = file.suffix.lstrip(".") if file else ""
    chosen: str = form or (suffix if suffix in get_args(Form) else "html")
    text = _written([Path(source) for source in sources], chosen, title)
    if chosen == "html" and file is None:
        file = Path("report.html")
    if file:
        replace_file(file, lambda partial: partial.write_text(text))
    if as_json:
        print_json({"format": chosen, "file": str(file) if file else None, "text": None if file else text})
    elif file:
        print(f"wrote {file}")
    else:
        print(text, end="")
    return 0


def _written(sources: list[Path], form: str, title: str | None) -> str:
    """Return the report of the results in these sources."""
    from swarmstep.compare import results
    from swarmstep.compare.analysis import analyse
    from swarmstep.compare.labels import commands
    from swarmstep.compare.results import Results
    from swarmstep.compare.series import distinct
    from swarmstep.compare.single_run import is_run, load_run
    from swarmstep.report import csv, markdown, page

    found = [load_run(source) if is_run(source) else results.load(source) for source in sources]
    if form == "json":
        about = {**found[0].about, "command": commands(found)}
        return results.dumps(Results(about, tuple(distinct(found))))  # each cell once
    sections = analyse(found)
    if form == "html":
        return page(sections, title or str(found[0].about.get("title", "Methods compared")))
    return markdown(sections) if form == "md" else csv(sections)
