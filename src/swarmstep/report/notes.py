"""What a reader should know beside the table of a section: how it was tuned, how sure it is, what to do next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from swarmstep.compare.sections import Edge, Section
from swarmstep.report.labels import enumeration, name


def notes(section: Section) -> list[str]:
    """Return sentences, the most important first."""
    tuned_on = [f"tuned on the {section.tuned_on}"] if section.tuned_on else []
    return [*_edges(section), *_seeds(section), *_resolution(section), *tuned_on]


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
            {**which, **row.edge._asdict(), "text": _at_edge([name(row)], row.edge)}
            for row, which in rows
            if row.edge
        ],
        "seeds_needed": [
            {**which, "difference": difference, "seeds": seeds}
            for row, which in rows
            for difference, seeds in row.seeds_needed.items()
        ],
    }


def _edges(section: Section) -> list[str]:
    alike: dict[Edge, list[str]] = {}
    for row in section.rows:
        if row.edge:
            alike.setdefault(row.edge, []).append(name(row))
    return [_at_edge(names, edge) for edge, names in alike.items()]


def _at_edge(names: Sequence[str], edge: Edge) -> str:
    grid = ", ".join(f"{rate:g}" for rate in edge.rates)
    whose = "its grid" if len(names) == 1 else "the grid of each"
    lies = f"the best rate of {enumeration(names)} lies at the edge of {whose} ({edge.rate:g} of {grid})"
    return f"{lies}: extend --lr-grid {edge.direction}"


def _seeds(section: Section) -> list[str]:
    """Return a short line for each difference; of many rows, those that need the fewest and the most seeds."""
    by_difference: dict[str, list[tuple[int, str]]] = {}
    for row in section.rows:
        for difference, seeds in row.seeds_needed.items():
            by_difference.setdefault(difference, []).append((seeds, name(row)))
    lines: list[str] = []
    for difference, rows in by_difference.items():
        named = [f"{seeds:,} ({which})" for seeds, which in sorted(rows)]
        counts = enumeration(named) if len(rows) <= 3 else f"{named[0]} to {named[-1]}"
        lines.append(f"seeds that tell {difference} from the best, with 80 % power at 95 %: {counts}")
    return lines


def _resolution(section: Section) -> list[str]:
    known = {row.to_target.interval for row in section.rows if row.to_target and row.to_target.interval > 0}
    if not known:
        return []
    least, most = f"{min(known):,.0f}", f"{max(known):,.0f}"
    every = least if least == most else f"{least} to {most}"
    return [f"the target was looked for every {every} steps: methods closer than that are not told apart by it"]
