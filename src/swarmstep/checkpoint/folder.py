"""Where checkpoints are: ``step-00000128/rank-00000.pt``, a folder for each step, a file for each rank."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

_STEP = re.compile(r"step-(\d{8,18})")


def path_of(folder: Path, step: int, rank: int) -> Path:
    """Return the path of a rank's file of a step."""
    return folder / f"step-{step:08d}" / f"rank-{rank:05d}.pt"


def steps_in(folder: Path, rank: int | None = None) -> list[int]:
    """Return the steps that have a folder, newest first; given a rank, those for which it has a file."""
    try:
        steps = [int(m[1]) for entry in folder.iterdir() if (m := _STEP.fullmatch(entry.name))]
        steps = [step for step in steps if rank is None or path_of(folder, step, rank).exists()]
    except OSError:  # absent or unreadable: there is nothing to load
        return []
    return sorted(steps, reverse=True)


def remove_step(folder: Path, step: int) -> None:
    """Remove the files of all ranks of a step; ignores errors."""
    place = path_of(folder, step, 0).parent
    with contextlib.suppress(OSError):  # another rank may do so at the same time
        for file in place.glob("rank-*"):
            file.unlink(missing_ok=True)
        place.rmdir()


def remove_file(path: Path) -> None:
    """Remove one rank's file, whole or partial, and its folder if that is empty then; ignores errors."""
    for file in (path, path.with_suffix(".partial")):
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # other ranks still have files there
        path.parent.rmdir()
