"""One page that holds all of a report and asks nothing of any network: `page.html`, filled in by Jinja2."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Sequence
from importlib import resources
from typing import Any

from swarmstep.compare.sections import Section
from swarmstep.optional_imports import library
from swarmstep.report import figures
from swarmstep.report.figures import DataTable
from swarmstep.report.headline import headline
from swarmstep.report.labels import Conclusion, conclusion, plural, ranges, timing
from swarmstep.report.notes import notes

SCRIPTS = ("numbers.js", "series.js", "plot.js", "page.js")  # in the order in which they need each other


def page(sections: Sequence[Section], title: str) -> str:
    """Return a report as one HTML page, which works offline: its policy forbids all requests.

    Args:
        sections: in the order in which they are shown.
        title: of the page.

    Raises:
        UsageError: Jinja2 is not installed.
    """
    files = resources.files("swarmstep.report")
    style = files.joinpath("page.css").read_text(encoding="utf-8")
    script = "\n".join(files.joinpath(name).read_text(encoding="utf-8") for name in SCRIPTS)
    runs = sum(section.cells for section in _once(sections))
    return _template().render(
        title=title,
        about=f"{plural(len(sections), 'comparison')}, {plural(runs, 'run')}, tuning included. "
        "n: steps between two synchronizations.",
        sections=[_section(section, index) for index, section in enumerate(sections)],
        plots=figures.plots(sections),
        style=style,
        style_hash=_hash(style),
        script=script,
        script_hash=_hash(script),
    )


def _template() -> Any:
    jinja2 = library("jinja2")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("swarmstep.report", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    return environment.get_template("page.html")


def _once(sections: Sequence[Section]) -> list[Section]:
    """Return the sections without those that show the same runs again, over another link of the virtual clock."""
    distinct: dict[tuple[object, ...], Section] = {}
    for section in sections:
        distinct.setdefault((section.real, section.command, tuple(section.condition.items())), section)
    return list(distinct.values())


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _section(section: Section, index: int) -> dict[str, Any]:
    return {
        "title": section.title,
        "timing": timing(section),
        "conclusion": Conclusion(*map(_unbroken, conclusion(section))),
        "condition": section.condition,
        "headline": headline(section),
        "notes": notes(section),
        "curves": figures.curves(section, index),
        "over_n": figures.over_n(section, index),
        "trust": figures.trust(section),
        "work": figures.work(section),
        "clock_errors": figures.clock_errors(section),
        "command": section.command,
        "facts": _facts(section),
        "failures": _failures(section),
    }


def _unbroken(text: str) -> str:
    """Return text in which no line breaks inside "n = 64"."""
    return text.replace(", n = ", ",\N{NO-BREAK SPACE}n\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}")


def _facts(section: Section) -> dict[str, str]:
    seeds = sorted({seed for row in section.rows for seed in row.seeds})
    facts = {"runs, tuning included": f"{section.cells:,}", "seeds": ranges(seeds)}
    return facts | {name: str(text) for name, text in section.environment.items() if name != "seeds"}


def _failures(section: Section) -> DataTable:
    rows = [
        [row.method, str(row.every), str(count), reason]
        for row in section.rows
        for reason, count in Counter(row.failed).items()
    ]
    return DataTable("Runs that failed", ["method", "n", "runs", "why"], rows)
