"""Shows a run from its files: one that goes on in other processes, or one that has ended."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from swarmstep.errors import DataError
from swarmstep.train.config import Config
from swarmstep.train.progress import Progress, choose_view, describe_distrust
from swarmstep.train.run_folder import locked, read_config
from swarmstep.train.work_done import WorkDone

QUIET = 5.0  # seconds without a new row, after which it is asked whether anybody still writes


def newest(root: Path) -> Path:
    """Return the run below `root` that was written last; `root` itself if it is a run.

    Raises:
        DataError: there is none.
    """
    if (root / "config.json").exists():
        return root
    runs = [file.parent for file in root.glob("*/config.json")] if root.is_dir() else []
    if not runs:
        raise DataError(f"{root}: expected a run's folder, or one with runs in it; found none")
    return max(runs, key=_written)


def watch(folder: Path, *, wait: Callable[[float], object] = time.sleep) -> dict[str, Any] | None:
    """Show a run until it is done; return its summary, None where nobody goes on with it.

    Args:
        folder: of the run.
        wait: lets a time in seconds pass until the next look at the files.

    Raises:
        DataError: the run's config is damaged or missing.
    """
    config = read_config(folder, done=True)
    view = choose_view(f"{config.title}: {folder}")
    progress = begun = Progress(0, config.training.steps, [], 0, 0, {})
    rows, last = _Rows(folder / "metrics.jsonl"), time.monotonic()
    try:
        while True:
            summary = _summary(folder)  # before the rows: what is written before the summary is read, too
            shown = progress
            again, new = rows.new()
            progress = begun if again else progress
            for row in new:
                progress = after(progress, row, config)
            if progress is not shown:
                last = time.monotonic()
                view.show(progress)
            if summary:
                return summary
            if time.monotonic() - last > QUIET:
                if not held(folder):
                    return None
                last = time.monotonic()
            wait(0.25)
    finally:
        view.close()


def after(progress: Progress, row: dict[str, Any], config: Config) -> Progress:
    """Return how far a run is after a row of its metrics.jsonl."""
    step = min(row.get("landed", row["step"]), config.training.steps)
    if row["kind"] == "look":
        losses = _numbers(row["losses"])
        workers = [WorkDone(**worker) for worker in row.get("by_worker", ())]
        return replace(progress, step=step, losses=losses, by_worker=workers)
    if row["kind"] == "evaluation":
        scores = {n: s for n, s in row.items() if n.startswith(("validation_", "test_")) and s is not None}
        return replace(progress, scores=scores)
    if row["kind"] == "round":
        left_out = [describe_distrust(worker) for worker in row["distrusted"]]
        losses = progress.losses or _numbers(row["losses"])
        sent = progress.bytes_sent + row["bytes_sent"]
        return replace(
            progress, step=step, rounds=row["number"], losses=losses, bytes_sent=sent, distrusted=left_out
        )
    return progress


def _numbers(losses: list[float | None]) -> list[float]:
    """Return losses as they were before they became JSON, which has no NaN."""
    return [math.nan if loss is None else loss for loss in losses]


class _Rows:
    """The rows of a metrics.jsonl that others add to, and sometimes replace by a shorter one."""

    def __init__(self, file: Path) -> None:
        self._file, self._place, self._inode = file, 0, 0

    def new(self) -> tuple[bool, list[dict[str, Any]]]:
        """Return the rows that were added since the last call; or True and all, if others took their place."""
        again, found = False, list[dict[str, Any]]()
        with contextlib.suppress(FileNotFoundError), self._file.open("rb") as file:
            inode = self._file.stat().st_ino
            if inode != self._inode or self._file.stat().st_size < self._place:
                again, self._inode, self._place = True, inode, 0
            file.seek(self._place)
            for line in file:
                if not line.endswith(b"\n"):
                    break  # it is being written
                self._place += len(line)
                with contextlib.suppress(ValueError):  # cut short by a crash
                    found.append(json.loads(line))
        return again, found


def held(folder: Path) -> bool:
    """Return whether a process trains in a folder."""
    try:
        locked(folder / "lock").close()
    except BlockingIOError:
        return True
    except OSError:  # it cannot be asked, say on a disk that is read-only
        return False
    return False


def _summary(folder: Path) -> dict[str, Any] | None:
    with contextlib.suppress(OSError, ValueError):
        summary = json.loads((folder / "summary.json").read_text())
        scores = ("train_", "validation_", "test_")
        return {n: math.nan if v is None and n.startswith(scores) else v for n, v in summary.items()}
    return None


def _written(run: Path) -> float:
    files = [run / "metrics.jsonl", run / "config.json"]
    return max(file.stat().st_mtime for file in files if file.exists())
