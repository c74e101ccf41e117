"""Checks the options of the benchmarks: ranges of numbers, and whether the memory suffices."""

from __future__ import annotations

import argparse

from swarmstep.errors import UsageError
from swarmstep.microbench.machine import free_memory

MEMORY_SHARE = 0.8  # of the free memory that a benchmark may take


def whole(text: str) -> int:
    """Return a whole number written as 10000000, 10_000_000 or 1e7."""
    try:
        number = float(text)
        if number == int(number):
            return int(number)
    except (ValueError, OverflowError):
        pass
    raise argparse.ArgumentTypeError(f"expected a whole number, found {text!r}")


def add_sizes(parser: argparse.ArgumentParser, parameters: int, repeats: int) -> None:
    """Add the options of a benchmark of one size, with its own defaults of P and of the turns."""
    add = parser.add_argument
    add("--workers", type=whole, default=4, metavar="W", help="processes (default: 4)")
    add("--parameters", type=whole, default=parameters, metavar="P", help="elements of the module "
        f"(default: {parameters:,})")  # fmt: skip
    add("--tensors", type=whole, default=80, metavar="T", help="in so many tensors (default: 80)")
    add("--repeats", type=whole, default=repeats, metavar="R", help="turns, of which the median counts "
        f"(default: {repeats})")  # fmt: skip


def checked(args: argparse.Namespace, **ranges: tuple[float, float]) -> None:
    """Check that options are in their ranges.

    Raises:
        UsageError: an option is out of its range.
    """
    for name, (low, high) in ranges.items():
        value = getattr(args, name)
        if not low <= value <= high:
            option = name.replace("_", "-")
            raise UsageError(f"--{option}: expected {low:,} to {high:,}, found {value:,}")


def missing_memory(elements: int, vectors: int) -> str:
    """Return why the memory does not suffice; "" if it does, or if its size is unknown.

    Args:
        elements: parameters of all workers together.
        vectors: number of float32 vectors that a worker holds.
    """
    needed, free = 4 * elements * vectors, free_memory()
    if free is None or needed <= MEMORY_SHARE * free:
        return ""
    return f"needs about {needed / 1e9:.0f} GB of memory, {MEMORY_SHARE * free / 1e9:.0f} GB are available"


def check_memory(elements: int, vectors: int, advice: str) -> None:
    """Check that the memory suffices.

    Args:
        elements: as in `missing_memory`.
        vectors: as in `missing_memory`.
        advice: what to change, for the error.

    Raises:
        UsageError: there is too little memory.
    """
    reason = missing_memory(elements, vectors)
    if reason:
        raise UsageError(f"{reason}; give {advice}")
