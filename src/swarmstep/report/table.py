"""All rows of all sections as CSV with unrounded numbers, for spreadsheets and data frames."""

from __future__ import annotations

import csv as writer
import io
import math
from collections.abc import Sequence

from swarmstep.compare.sections import MethodRow, Section
from swarmstep.compare.statistics import Estimate
from swarmstep.report.labels import NONE


def csv(sections: Sequence[Section]) -> str:
    """Return a header line and a line for each row of each section; unknown values are empty.

    Each estimate takes four columns: its mean under its name, then NAME_low, NAME_high (95 % interval) and
    NAME_count (seeds). `target_*` are means over the seeds that reached the target: `reached` of `of`.
    """
    lines = [_line(section, row) for section in sections for row in section.rows]
    names = list(dict.fromkeys(name for line in lines for name in line))
    file = io.StringIO()
    table = writer.DictWriter(file, names or ["section"], restval="", lineterminator="\n")
    table.writeheader()
    table.writerows(lines)
    return file.getvalue()


def _line(section: Section, row: MethodRow) -> dict[str, str | float]:
    line: dict[str, str | float] = {
        "section": section.title,
        **{f"condition_{name}": text for name, text in section.condition.items()},
        "link": section.link,
        "real": str(section.real).lower(),
        "target": section.target,
        "method": row.method,
        "every": row.every,
        "rank": "" if row.rank is None else row.rank,
        "verdict": row.verdict,
        "chosen": "; ".join(f"{name}={text}" for name, text in row.chosen.items()),
        "tried": row.tried,
        "seeds": " ".join(map(str, row.seeds)),
        "failed": len(row.failed),
    }
    for name in ("accuracy", "loss", "bytes", "seconds"):
        line |= _numbers(section.score if name == "accuracy" else name, getattr(row, name))
    reached = row.to_target
    line |= {"reached": reached.reached if reached else "", "of": reached.count if reached else ""}
    for name in ("steps", "bytes", "seconds"):
        line |= _numbers(f"target_{name}", getattr(reached, name) if reached else NONE)
    return line


def _numbers(name: str, estimate: Estimate) -> dict[str, str | float]:
    names = (name, f"{name}_low", f"{name}_high", f"{name}_count")
    return {key: number if math.isfinite(number) else "" for key, number in zip(names, estimate, strict=True)}
