"""Text as commands and their help show it."""

from __future__ import annotations

from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a line for each row, its columns below those of the others."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def literal(text: str) -> str:
    """Return a text that the help shows as it is: without rich's markup."""
    return text.replace("[", r"\[")


def examples(*lines: str) -> str:
    """Return the end of a command's help: how it is called, one call a line."""
    shown = ["[bold]Examples[/bold]", *(f"  {literal(line)}" for line in lines)]
    return "\n" + "\n".join(shown)  # the empty line keeps the indent
