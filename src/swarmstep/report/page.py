"""One page that holds all of a report and asks nothing of any network."""

from __future__ import annotations

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from importlib import resources
from string import Template

from swarmstep.compare.analysis import Section
from swarmstep.report import figures
from swarmstep.report.headline import headline
from swarmstep.report.labels import Conclusion, answer, plural, ranges, timing
from swarmstep.report.markup import Markup, join, table, tag


def page(sections: Sequence[Section], title: str) -> str:
    """Return a report as one HTML page, which works offline: its policy forbids all requests.

    Args:
        sections: in the order in which they are shown.
        title: of the page.
    """
    files = resources.files("swarmstep.report")
    names = ("template.html", "page.css", "numbers.js", "page.js")
    template, style, numbers, plots = (files.joinpath(name).read_text(encoding="utf-8") for name in names)
    script = numbers + plots
    data = json.dumps(figures.plots(sections), allow_nan=False, separators=(",", ":"))
    runs = sum(section.cells for section in _once(sections))
    about = f"{plural(len(sections), 'comparison')}, {plural(runs, 'run')}, tuning included"
    return Template(template).substitute(
        title=join([title]),
        about=join([about]),
        answers=join(_answer(section, i) for i, section in enumerate(sections)),
        sections=join(_section(section, i) for i, section in enumerate(sections)),
        style=style,
        script=script,
        style_hash=_hash(style),
        script_hash=_hash(script),
        data=data.replace("<", "\\u003c"),  # or a method's name could end the script
    )


def _once(sections: Sequence[Section]) -> list[Section]:
    """Return the sections without those that show the same runs again, over another link of the virtual clock."""
    found: dict[tuple[object, ...], Section] = {}
    for section in sections:
        found.setdefault((section.real, section.command, tuple(section.condition.items())), section)
    return list(found.values())


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _answer(section: Section, index: int) -> Markup:
    found = Conclusion(*map(_kept, answer(section)))
    where = tag("a", section.title, href=f"#section-{index}")
    rest = [tag("span", f" \N{EM DASH} {found.rest}", class_="rest")] if found.rest else []
    sentence = tag("p", tag("span", f"{found.question}: "), tag("strong", found.winner), *rest)
    return tag("li", sentence, tag("p", where, f" \N{MIDDLE DOT} {timing(section)}", class_="where"))


def _kept(text: str) -> str:
    """Return text whose "n = 64" stay in one line."""
    return text.replace(", n = ", ",\N{NO-BREAK SPACE}n\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}")


def _section(section: Section, index: int) -> Markup:
    facts = [tag("span", f"{name} ", tag("b", text)) for name, text in section.condition.items()]
    clock = timing(section)
    parts = [
        tag("h2", section.title),
        tag("p", clock[:1].upper() + clock[1:] + ".", class_="clock"),
        tag("p", *facts, class_="facts"),
        headline(section),
        figures.curves(section, index),
        figures.over_n(section, index),
        figures.trust(section),
        figures.clock_errors(section),
        _made(section),
    ]
    return tag("section", *parts, class_="comparison", id=f"section-{index}")


def _made(section: Section) -> Markup:
    """How it was made: the command, versions, seeds, and what failed."""
    seeds = sorted({seed for row in section.rows for seed in row.seeds})
    facts = {"runs, tuning included": f"{section.cells:,}", "seeds": ranges(seeds)}
    facts |= {name: str(text) for name, text in section.environment.items() if name != "seeds"}
    named = [part for name, text in facts.items() for part in (tag("dt", name), tag("dd", text))]
    lost = [
        [row.method, str(row.every), str(count), why]
        for row in section.rows
        for why, count in Counter(row.failed).items()
    ]
    named_lost = table(["method", "n", "runs", "why"], lost, "Runs that failed")
    command = tag("pre", tag("code", section.command), tabindex="0", aria_label="Command")
    parts = [command, tag("dl", *named), named_lost if lost else tag("p", "No run failed.")]
    return tag("section", tag("h3", "How it was made"), *parts, class_="made")
