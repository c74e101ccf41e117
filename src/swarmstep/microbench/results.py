"""What a benchmark found: rows, and what was left out and why."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

_COLUMNS = ("name", "workers", "parameters", "median", "limit", "limit's median", "ratio")


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One thing that was timed; `ratio` is its median over that of `limit`, timed in the same run."""

    name: str
    workers: int
    parameters: int
    median_seconds: float
    limit: str | None = None  # None: this is itself what others are compared with
    limit_seconds: float | None = None
    ratio: float | None = None


@dataclasses.dataclass(frozen=True)
class Sent:
    """What each worker sent in one round, in bytes, as a mean over the workers."""

    name: str
    workers: int
    parameters: int
    metered: float
    formula: float
    interface: float | None = None  # payload counted on the network interface; None: there is none of its own


@dataclasses.dataclass(frozen=True)
class Skipped:
    """One thing that was not timed."""

    name: str
    skipped: str  # the reason
    workers: int | None = None  # None: any
    parameters: int | None = None


@dataclasses.dataclass
class Report:
    """What came out of one run of a benchmark."""

    rows: list[Measurement] = dataclasses.field(default_factory=list[Measurement])
    skipped: list[Skipped] = dataclasses.field(default_factory=list[Skipped])
    sent: list[Sent] = dataclasses.field(default_factory=list[Sent])

    def add(self, other: Report) -> None:
        """Append what `other` holds."""
        self.rows += other.rows
        self.skipped += other.skipped
        self.sent += other.sent

    def dumps(self) -> str:
        """Return this as JSON; `loads` reads it."""
        return json.dumps(dataclasses.asdict(self))

    @staticmethod
    def loads(text: str) -> Report:
        """Return what `dumps` wrote."""
        found = json.loads(text)
        return Report(
            [Measurement(**one) for one in found["rows"]],
            [Skipped(**one) for one in found["skipped"]],
            [Sent(**one) for one in found["sent"]],
        )


def rows_of(
    medians: Mapping[str, float], limits: Mapping[str, str | None], workers: int, parameters: int
) -> list[Measurement]:
    """Return a row for each name in `limits`, which tells what it is compared with.

    Args:
        medians: seconds of all that was timed.
        limits: name -> the name in `medians` it is compared with, or None.
        workers: how many took part.
        parameters: elements of the vector.
    """
    found: list[Measurement] = []
    for name, limit in limits.items():
        median = medians[name]
        least = medians[limit] if limit else None
        ratio = median / max(least, 1e-9) if least is not None else None
        found.append(Measurement(name, workers, parameters, median, limit, least, ratio))
    return found


def machine() -> dict[str, Any]:
    """Return what the times depend on besides the command."""
    from swarmstep import __version__

    return {
        "cpus": os.cpu_count(),
        "usable_cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "model": _processor(),
        "load": os.getloadavg()[0],  # of the last minute: others may be at work, too
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "swarmstep": __version__,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def free_memory() -> int | None:
    """Return how many bytes of memory can be had now; None where the system does not tell."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def show(report: Report, about: Mapping[str, Any]) -> None:
    """Print a report for people."""
    print(
        f"{about['model']}, {about['usable_cpus']} cores, load {about['load']:.1f}; torch {about['torch']}, "
        f"Python {about['python']}, {about['platform']}\n"
    )
    cells = [_cells(row) for row in report.rows]
    text = _plain(cells) if cells else ""
    borders = 3 * len(_COLUMNS)
    if text and sys.stdout.isatty() and len(text.split("\n")[0]) + borders <= shutil.get_terminal_size().columns:
        _show_rich(cells)  # a narrower terminal would cut the names off
    elif text:
        print(text)
    if report.sent:
        print("\nsent by each worker in a round:")
    for one in report.sent:
        on_interface = (
            "" if one.interface is None else f", {one.interface / one.metered:.3f} of it on the interface"
        )
        print(f"  {one.name}: {one.metered:,.0f} bytes metered, {one.formula:,.0f} by the formula{on_interface}")
    if report.skipped:
        print("\nleft out:")
    for left in report.skipped:
        where = [f"{left.workers} workers"] if left.workers else []
        where += [f"{left.parameters:,} parameters"] if left.parameters else []
        print(f"  {', '.join([left.name, *where])}: {left.skipped}")


def _cells(row: Measurement) -> tuple[str, ...]:
    return (
        row.name,
        str(row.workers),
        f"{row.parameters:,}",
        in_seconds(row.median_seconds),
        row.limit or "",
        "" if row.limit_seconds is None else in_seconds(row.limit_seconds),
        "" if row.ratio is None else f"{row.ratio:.2f}",
    )


def in_seconds(seconds: float) -> str:
    """Return a duration as people read it."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size or unit == "us":
            return f"{seconds / size:.{1 if seconds < 100 * size else 0}f} {unit}"
    raise AssertionError("unreachable")


def _plain(cells: Sequence[tuple[str, ...]]) -> str:
    table = [_COLUMNS, *cells]
    widths = [max(len(row[i]) for row in table) for i in range(len(_COLUMNS))]
    lines: list[str] = []
    for row in table:
        padded = [
            cell.ljust(width) if name in ("name", "limit") else cell.rjust(width)
            for cell, width, name in zip(row, widths, _COLUMNS, strict=True)
        ]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def _show_rich(cells: Sequence[tuple[str, ...]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for name in _COLUMNS:
        table.add_column(name, justify="left" if name in ("name", "limit") else "right")
    for row in cells:
        table.add_row(*row)
    Console().print(table)
