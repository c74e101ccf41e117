"""Options of the benchmarks: numbers that are checked, and whether the memory suffices."""

from __future__ import annotations

import argparse

from swarmstep.errors import UsageError
from swarmstep.microbench.results import free_memory

SHARE = 0.8  # of the free memory that a benchmark may take


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
    """Refuse numbers that are out of their range.

    Raises:
        UsageError: names the first such option.
    """
    for name, (low, high) in ranges.items():
        found = getattr(args, name)
        if not low <= found <= high:
            option = name.replace("_", "-")
            raise UsageError(f"--{option}: expected {low:,} to {high:,}, found {found:,}")


def memory_lacks(elements: int, vectors: int) -> str:
    """Return why the memory does not suffice; "" if it does, or nobody knows.

    Args:
        elements: parameters of all workers together.
        vectors: how many vectors of 4-byte numbers a worker holds.
    """
    needed, free = 4 * elements * vectors, free_memory()
    if free is None or needed <= SHARE * free:
        return ""
    return f"needs about {needed / 1e9:.0f} GB of memory, {SHARE * free / 1e9:.0f} GB can be had"


def check_memory(elements: int, vectors: int, advice: str) -> None:
    """Refuse what does not fit.

    Args:
        elements: as in `memory_lacks`.
        vectors: as in `memory_lacks`.
        advice: what to give instead.

    Raises:
        UsageError: there is too little memory.
    """
    lacks = memory_lacks(elements, vectors)
    if lacks:
        raise UsageError(f"{lacks}; give {advice}")
