"""Checks before a benchmark starts: ranges of settings, and whether the memory suffices."""

from __future__ import annotations

from swarmstep.errors import UsageError
from swarmstep.microbench.machine import free_memory
from swarmstep.microbench.settings import BenchSettings

MEMORY_SHARE = 0.8  # of the free memory that a benchmark may take


def checked(settings: BenchSettings, **ranges: tuple[float, float]) -> None:
    """Check that options are in their ranges.

    Raises:
        UsageError: an option is out of its range.
    """
    for name, (low, high) in ranges.items():
        value = getattr(settings, name)
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
