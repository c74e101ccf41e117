"""Prints the report of a benchmark as a table."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from swarmstep.microbench.results import Measurement, Report

_COLUMNS = ("name", "workers", "parameters", "median", "limit", "limit's median", "ratio")


def show(report: Report, about: Mapping[str, Any]) -> None:
    """Print a report; `about` is `machine.machine()`."""
    print(
        f"{about['model']}, {about['usable_cpus']} cores, load {about['load']:.1f}; torch {about['torch']}, "
        f"Python {about['python']}, {about['platform']}\n"
    )
    cells = [_cells(row) for row in report.rows]
    text = _plain(cells) if cells else ""
    borders = 3 * len(_COLUMNS)
    if text and sys.stdout.isatty() and len(text.split("\n")[0]) + borders <= shutil.get_terminal_size().columns:
        _show_rich(cells)  # a narrower terminal would truncate the names
    elif text:
        print(text)
    if report.sent:
        print("\nsent by each worker in a round:")
    for one in report.sent:
        on_interface = (
            "" if one.interface is None else f", {one.interface / one.metered:.3f} of it on the interface"
        )
        print(f"  {one.name}: {one.metered:,.0f} bytes metered, {one.formula:,.0f} by the formula{on_interface}")
    for figure in report.figures:
        print(f"{figure.name}: {figure.value:g}")
    if report.skipped:
        print("\nskipped:")
    for skipped in report.skipped:
        parts = [skipped.name]
        parts += [f"{skipped.workers} workers"] if skipped.workers else []
        parts += [f"{skipped.parameters:,} parameters"] if skipped.parameters else []
        print(f"  {', '.join(parts)}: {skipped.skipped}")


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
    """Return a duration in a readable unit."""
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
