"""Checkpoints: a folder for each step, a file for each rank, written atomically, read as data only.

::

    checkpoints/step-00000128/rank-00000.pt
                              rank-00001.pt

A file is what `torch.save` writes, behind it a label by which `Saver.prune` sees which files belong together, and
behind that the SHA-256 of both: the archive's own check sums do not cover all of it. Besides the state it says its
step, rank, the size of the group that wrote it, and a mark of that group. A checkpoint counts once ranks 0 to
size - 1 have their files, of the same size and mark: others that lie around, of workers that were killed or of an
earlier attempt, do not. The ranks may share the folder or each have their own disk: `load` takes the newest step
for which every rank finds a whole file of its own. For another number of workers, `load_any` takes the newest
whole one in a folder that all share.

`save` is one collective call; a `Saver` writes while training goes on, and calls none.
"""

from __future__ import annotations

import copy
import itertools
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from swarmstep.checkpoint.file import (
    content_of,
    group_of,
    path_of,
    read_content,
    remove,
    remove_all,
    unwritable,
    write,
)
from swarmstep.comm.background import BackgroundTask, TaskRegistry
from swarmstep.comm.base import Comm
from swarmstep.errors import CheckpointError
from swarmstep.seeding import mix

_STEP = re.compile(r"step-(\d{8,18})")
_LISTED = 16  # newest steps that the ranks compare
_MORE = 8  # steps that stay beyond `keep` where hardly any becomes whole
PATIENCE = 600.0  # seconds for one file; a disk that is slower is taken for stuck


def save(folder: Path, step: int, state: Mapping[str, Any], comm: Comm, keep: int = 2) -> Path:
    """Write this rank's file and, once all ranks have theirs, remove all but the newest `keep` checkpoints.

    Collective. Checkpoints written before survive until all ranks have written this one.

    Args:
        folder: holds the checkpoints; made if absent.
        step: the step that `state` is after.
        state: numbers, strings, tensors, and lists and dictionaries of them.
        comm: the group.
        keep: how many checkpoints stay, at least 1.

    Returns:
        The path of this rank's file.

    Raises:
        CheckpointError: some rank could not write (disk full, no permission); on all ranks.
    """
    saver = Saver(folder, keep)
    saver.start(step, state, comm.rank, comm.size)
    saver.agree(comm)
    return path_of(folder, step, comm.rank)


class Saver:
    """Writes this rank's checkpoints in the background, one at a time; only `agree` is collective.

    Args:
        folder: holds the checkpoints; made if absent.
        keep: how many `prune` leaves, at least 1.

    Attributes:
        done: the newest step that this rank has written whole, 0 before the first.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.done = 0
        self._folder, self._keep = folder, keep
        self._rank, self._before = 0, 0
        self._writing: Path | None = None
        self._writes = TaskRegistry()  # of its own: a slow disk holds up no group
        self._task: BackgroundTask[None] | None = None

    def start(self, step: int, state: Mapping[str, Any], rank: int, size: int, mark: str = "") -> None:
        """Copy `state` and begin to write it; a write under way is waited for first, as `settle` does.

        Args:
            step: the step that `state` is after, at least 1.
            state: as of `save`; it may change as soon as this returns.
            rank: of this worker now.
            size: of the group now.
            mark: tells the groups apart that may write the same step, so that their files are not taken for one
                checkpoint; the same on all ranks.

        Raises:
            CheckpointError: the write before failed; this one was not begun.
        """
        self.settle()
        content = content_of(step, _copied(dict(state)), rank, size, mark)
        self._rank, self._before, path = rank, self.done, path_of(self._folder, step, rank)
        self._writing = path
        self._task = self._writes.start(lambda: self._run(path, content))

    def _run(self, path: Path, content: dict[str, Any]) -> None:
        try:
            write(path, content)
            self.done = content["step"]
        except (OSError, RuntimeError) as error:
            raise unwritable(path, error) from error
        finally:
            self._writing = None

    def settle(self) -> None:
        """Wait for the write under way, if there is one.

        Raises:
            CheckpointError: it failed, which is said once, or is stuck. Older checkpoints are untouched.
        """
        if not self._task:
            return
        self._task.wait(PATIENCE)
        if self._writing:
            raise CheckpointError(f"{self._writing}: still being written after {PATIENCE:g} s; look at the disk")
        task, self._task = self._task, None
        task.result()

    def agree(self, comm: Comm) -> None:
        """Wait until all ranks have written, then remove all but the newest `keep`. Collective.

        Raises:
            CheckpointError: some rank could not write; on all ranks. Older checkpoints are untouched.
        """
        problem = ""
        try:
            self.settle()
        except CheckpointError as error:
            problem = str(error)
        problems = [said for said in _gather_text(problem, comm) if said]
        if problems:
            if self.done > self._before:
                remove(path_of(self._folder, self.done, self._rank))
                self.done = self._before
            raise CheckpointError(problems[0])
        for abandoned in (step for step in _steps(self._folder, self._rank) if step > self.done > 0):
            remove(path_of(self._folder, abandoned, self._rank))  # the run went back to before them
        self.prune(self.done)

    def prune(self, common: int) -> None:
        """Remove what is older than the newest `keep` checkpoints, up to `done`, that are whole in this folder.

        Where the ranks have a disk each, none is; there it removes what is older than the newest `keep` files of
        this rank among the steps up to `common`. Workers that die again and again as they write can leave too few
        of either, and files pile up: then all but those and the newest `keep` + 8 steps go. With a step go the
        files of all ranks: who wrote them may have left.

        Args:
            common: a step that all ranks have written, such as their `done` where all have the same.
        """
        steps = [step for step in _steps(self._folder) if step <= self.done]
        mine = [step for step in _steps(self._folder, self._rank) if step <= min(common, self.done)]
        whole = [*itertools.islice((step for step in steps if _looks_whole(self._folder, step)), self._keep)]
        kept, end = {*whole, *mine[: self._keep]}, 0
        for found, most in ((whole, self._keep), (mine, self._keep), (steps, self._keep + _MORE)):
            end = max(end, found[most - 1] if len(found) >= most else 0)
        for step in steps:
            if step < end and step not in kept:
                remove_all(self._folder, step)


def load(folder: Path, comm: Comm) -> dict[str, Any]:
    """Return this rank's `state` of the newest checkpoint that all ranks hold whole. Collective.

    A newer one that is not whole is passed over; rank 0 warns, and says why.

    Raises:
        CheckpointError: there is none, or files are foreign or of another number of workers; on all ranks.
    """
    steps = _steps(folder, comm.rank)[:_LISTED]
    problem = ""
    listed = torch.full((_LISTED + 1, 2), -1)  # (step, mark) of what is whole, and the newest of all
    listed[_LISTED, 0] = max(steps, default=-1)
    for place, step in enumerate(steps):
        try:
            content = read_content(path_of(folder, step, comm.rank), step, comm.rank, comm.size)
            listed[place] = torch.tensor([step, mix(content["mark"])])
        except CheckpointError as error:
            problem = problem or str(error)
    rows = comm.gather(listed)
    problems = [said for said in _gather_text(problem, comm) if said]
    latest = int(rows[:, _LISTED, 0].max())
    held = [{(step, mark) for step, mark in row if step >= 0} for row in rows[:, :_LISTED].tolist()]
    common = set[tuple[int, int]].intersection(*held)
    if not common:
        without = next((rank for rank, found in enumerate(held) if not found), 0)
        problems.append(f"{folder}: no checkpoint that all ranks hold; rank {without} has none")
        raise CheckpointError(problems[0])
    step = max(common)[0]
    if comm.rank == 0 and step < latest:
        problems.append(f"{folder}: the checkpoint of step {latest} is not there on all ranks")
        warnings.warn(f"{problems[0]}; going back to step {step}", stacklevel=2)
    return read(path_of(folder, step, comm.rank), step, comm.rank, comm.size)


def newest(folder: Path) -> int:
    """Return the step of the newest checkpoint in `folder` that is whole, of however many ranks.

    Raises:
        CheckpointError: there is none; names what is missing or damaged.
    """
    return _newest(folder)[0]


def load_any(folder: Path) -> tuple[int, list[dict[str, Any]]]:
    """Return the step and the states of all ranks, in rank order, of the newest checkpoint that is whole.

    Not collective; `folder` holds the files of all ranks. A newer checkpoint that is not whole is passed over,
    and a warning says why.

    Raises:
        CheckpointError: as `newest`.
    """
    step, states, problem = _newest(folder)
    if problem:
        warnings.warn(f"{problem}; going back to step {step}", stacklevel=2)
    return step, states


def _newest(folder: Path) -> tuple[int, list[dict[str, Any]], str]:
    """Return step and states of the newest whole checkpoint, and what is wrong with the newest if that is none."""
    problem = ""
    for step in _steps(folder):
        try:
            return step, _whole(folder, step), problem
        except CheckpointError as error:
            problem = problem or str(error)
    raise CheckpointError(problem or f"{folder}: expected a checkpoint (step-N/rank-N.pt), found none; start anew")


def _whole(folder: Path, step: int) -> list[dict[str, Any]]:
    """Return the states of all ranks of one step."""
    first = read_content(path_of(folder, step, 0), step, 0)
    others = (
        read_content(path_of(folder, step, r), step, r, first["size"], first["mark"])
        for r in range(1, first["size"])
    )
    return [content["state"] for content in (first, *others)]


def read(path: Path, step: int, rank: int, size: int) -> dict[str, Any]:
    """Return the state in one rank's file; the file is read as data, nothing in it is executed.

    Raises:
        CheckpointError: names file and field: damaged, foreign, or of another step, rank or size.
    """
    return read_content(path, step, rank, size)["state"]


def _steps(folder: Path, rank: int | None = None) -> list[int]:
    """Return the steps that have a folder, newest first; given a rank, those for which it has a file."""
    try:
        found = [int(m[1]) for entry in folder.iterdir() if (m := _STEP.fullmatch(entry.name))]
        found = [step for step in found if rank is None or path_of(folder, step, rank).exists()]
    except OSError:  # absent, or not to be read: there is nothing to load
        return []
    return sorted(found, reverse=True)


def _looks_whole(folder: Path, step: int) -> bool:
    """Return whether all files of a step are in the folder, by their labels: none of them is read."""
    group = group_of(path_of(folder, step, 0))
    return bool(group) and all(group_of(path_of(folder, step, rank)) == group for rank in range(1, group[0]))


def _copied(value: Any) -> Any:
    """Return a nest of lists and dictionaries with copies of its tensors, in host memory."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        result = copy.copy(value)  # with what a module's state dict knows besides
        for key, inner in value.items():
            result[key] = _copied(inner)
        return result
    if isinstance(value, list | tuple):
        return type(value)(map(_copied, value))
    return value


def _gather_text(text: str, comm: Comm) -> list[str]:
    """Return the texts of all ranks, in rank order; collective."""
    content = torch.tensor(list(text.encode()), dtype=torch.uint8)
    lengths = comm.gather(torch.tensor(len(content)))
    if not lengths.any():
        return [""] * comm.size
    padded = torch.zeros(int(lengths.max()), dtype=torch.uint8)
    padded[: len(content)] = content
    rows = comm.gather(padded)
    return [bytes(row[:n].tolist()).decode() for row, n in zip(rows, lengths.tolist(), strict=True)]
