"""What a reader should know beside the table of a section: how it was tuned, how sure it is, what to do next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from swarmstep.compare.sections import Edge, MethodRow, Section
from swarmstep.report.labels import name


def notes(section: Section) -> list[str]:
    """Return sentences, the most important first."""
    edges = [_at_edge(row, row.edge) for row in section.rows if row.edge]
    return edges + [text for text in (_seeds(section), _resolution(section), _tuned_on(section)) if text]


def advice(sections: Sequence[Section]) -> dict[str, Any]:
    """Return the same for programs: plain JSON.

    "tuned_on", texts; "edges", rows whose best rate is at the edge of its grid; "seeds_needed", how many seeds
    would tell a difference of interest between a row and the best.
    """
    rows = [
        (row, {"section": section.title, "link": section.link, "method": row.method, "every": row.every})
        for section in sections
        for row in section.rows
    ]
    return {
        "tuned_on": list(dict.fromkeys(section.tuned_on for section in sections if section.tuned_on)),
        "edges": [
            {**which, **row.edge._asdict(), "text": _at_edge(row, row.edge)} for row, which in rows if row.edge
        ],
        "seeds_needed": [
            {**which, "difference": difference, "seeds": seeds}
            for row, which in rows
            for difference, seeds in row.seeds_needed.items()
        ],
    }


def _at_edge(row: MethodRow, edge: Edge) -> str:
    grid = ", ".join(f"{rate:g}" for rate in edge.rates)
    return (
        f"the best rate of {name(row)} lies at the edge of its grid ({edge.rate:g} of {grid}): "
        f"extend --lr-grid {edge.direction}"
    )


def _seeds(section: Section) -> str:
    by_difference: dict[str, list[str]] = {}
    for row in section.rows:
        for difference, seeds in row.seeds_needed.items():
            by_difference.setdefault(difference, []).append(f"{name(row)}: {seeds:,}")
    texts = [f"{difference} ({', '.join(counts)})" for difference, counts in by_difference.items()]
    return f"seeds to tell from the best (80 % power at 95 %): {'; '.join(texts)}" if texts else ""


def _resolution(section: Section) -> str:
    known = {row.to_target.interval for row in section.rows if row.to_target and row.to_target.interval > 0}
    if not known:
        return ""
    least, most = f"{min(known):,.0f}", f"{max(known):,.0f}"
    every = least if least == most else f"{least} to {most}"
    return f"the target was looked for every {every} steps, and times to it are known to that"


def _tuned_on(section: Section) -> str:
    return f"tuned on the {section.tuned_on}" if section.tuned_on else ""
