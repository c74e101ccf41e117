"""The command ``swarmstep report``: results in, a page or a table out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args

import typer

from swarmstep.cli.json_output import Json, print_json
from swarmstep.cli.options import one_of, path
from swarmstep.cli.text import examples
from swarmstep.errors import UsageError

if TYPE_CHECKING:
    from swarmstep.compare.results import Results

Form = Literal["html", "md", "csv", "json", "png", "svg"]
PLOTS = ("png", "svg")

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
            help="where to (default: report.html; standard output for md, csv, json); a folder for png and svg "
            "(default: plots)",
        ),
    ] = None,
    form: Annotated[
        Form | None,
        typer.Option(
            "--format",
            metavar="FORMAT",
            parser=one_of(Form),
            help="html, md, csv, json (default: by the name of FILE, or html); png, svg: a file for each plot",
        ),
    ] = None,
    title: Annotated[
        str | None, typer.Option(metavar="TEXT", help="of the page (default: that of the first source)")
    ] = None,
    as_json: Json = False,
) -> int:
    """Make a page, or a table, of runs and comparisons.

    With --json, says where it is: {"format": ..., "file": ..., "text": ...}; without FILE the text is in it.
    Plots: {"format": ..., "files": [...]}.
    """
    from swarmstep.train.run_folder import replace_file

    if form in PLOTS:
        return _draw([Path(source) for source in sources], form, Path(output or "plots"), as_json)
    file = Path(output) if output else None
    suffix = file.suffix.lstrip(".") if file else ""
    chosen: str = form or (suffix if suffix in get_args(Form) else "html")
    if chosen in PLOTS:
        raise UsageError(f"--output {output}: plots are several files; give --format {chosen} and a folder")
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


def _draw(sources: list[Path], form: Literal["png", "svg"], folder: Path, as_json: bool) -> int:
    """Write a file for each plot."""
    from swarmstep.compare.analysis import analyse
    from swarmstep.errors import DataError
    from swarmstep.report.images import images
    from swarmstep.train.run_folder import replace_file

    drawn = images(analyse(_loaded(sources)), form)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder} cannot be made: {error.strerror}; give another --output") from None
    files = [folder / f"{name}.{form}" for name in drawn]
    for file, content in zip(files, drawn.values(), strict=True):
        replace_file(file, lambda partial, content=content: partial.write_bytes(content))
    if as_json:
        print_json({"format": form, "files": [str(file) for file in files]})
    else:
        print(f"wrote {len(files)} plots in {folder}")
    return 0


def _written(sources: list[Path], form: str, title: str | None) -> str:
    """Return the report of the results in these sources."""
    from swarmstep.compare import results
    from swarmstep.compare.analysis import analyse
    from swarmstep.compare.labels import commands
    from swarmstep.compare.results import Results
    from swarmstep.compare.series import distinct
    from swarmstep.report import csv, markdown, page

    found = _loaded(sources)
    if form == "json":
        about = {**found[0].about, "command": commands(found)}
        return results.dumps(Results(about, tuple(distinct(found))))  # each cell once
    sections = analyse(found)
    if form == "html":
        return page(sections, title or str(found[0].about.get("title", "Methods compared")))
    return markdown(sections) if form == "md" else csv(sections)


def _loaded(sources: list[Path]) -> list[Results]:
    from swarmstep.compare import results
    from swarmstep.compare.single_run import is_run, load_run

    return [load_run(source) if is_run(source) else results.load(source) for source in sources]
