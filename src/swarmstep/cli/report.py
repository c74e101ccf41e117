"""The command ``swarmstep report``: results in, a page or a table out."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from swarmstep.compare import results
from swarmstep.compare.labels import commands
from swarmstep.compare.results import Results
from swarmstep.compare.series import distinct
from swarmstep.train.run_folder import replace_file

CHOICES = ("html", "md", "csv", "json")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `report`."""
    add = parser.add_argument
    add(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="a folder that `compare` wrote, or a file that --format json did",
    )
    add(
        "-o",
        "--output",
        metavar="FILE",
        help="where to (default: report.html, or standard output for md, csv, json)",
    )
    add("--format", choices=CHOICES, help="default: by the name of -o, else html")
    add("--title", metavar="TEXT", help="of the page (default: that of the first source)")


def run(args: argparse.Namespace) -> int:
    """Write a report of comparisons."""
    from swarmstep.compare.analysis import analyse
    from swarmstep.report import csv, markdown, page

    found = [results.load(Path(source)) for source in args.sources]
    file = Path(args.output) if args.output else None
    suffix = file.suffix.lstrip(".") if file else ""
    form = args.format or (suffix if suffix in CHOICES else "html")
    if form == "json":
        text = results.dumps(_merged(found))
    else:
        sections = analyse(found)
        title = args.title or str(found[0].about.get("title", "Methods compared"))
        writers = {
            "html": lambda: page(sections, title),
            "md": lambda: markdown(sections),
            "csv": lambda: csv(sections),
        }
        text = writers[form]()
    if form == "html" and file is None:
        file = Path("report.html")
    if file is None:
        print(text, end="")
        return 0
    replace_file(file, lambda partial: partial.write_text(text))
    print(f"wrote {file}")
    return 0


def _merged(found: Sequence[Results]) -> Results:
    """Return all cells, each once, and what is said of the first source, with the commands of all."""
    return Results({**found[0].about, "command": commands(found)}, tuple(distinct(found)))
