"""Writing checkpoints, in the background or collectively, and removing old ones.

Besides the state, a file holds its step, its rank, the size of the group that wrote it, and a mark of that
group. A checkpoint is complete once ranks 0 to size - 1 have their files, of the same size and mark: files of
workers that were killed, or of an earlier attempt, do not count. The ranks may share the folder or each have
their own disk: `load` takes the newest step for which every rank has an intact file of its own. For another
number of workers, `load_any` takes the newest complete checkpoint in a shared folder.

`save` is one collective call; a `Saver` writes while training goes on, and calls no collective.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from swarmstep.checkpoint.file import content_of, label_of, unwritable, write
from swarmstep.checkpoint.folder import path_of, remove_file, remove_step, steps_in
from swarmstep.comm.background import BackgroundTask, TaskRegistry
from swarmstep.comm.base import Comm
from swarmstep.comm.gather_text import gather_text
from swarmstep.errors import CheckpointError
from swarmstep.waiting import Wait

_MORE = 8  # steps that stay beyond `keep` where hardly any is ever completed
PATIENCE = 600.0  # seconds for one file; a slower disk counts as stuck


def save(folder: Path, step: int, state: Mapping[str, Any], comm: Comm, keep: int = 2) -> Path:
    """Write this rank's file and, once all ranks have theirs, remove all but the newest `keep` checkpoints.

    Collective. Earlier checkpoints survive until all ranks have written this one.

    Args:
        folder: holds the checkpoints; made if absent.
        step: the step after which `state` was taken.
        state: numbers, strings, tensors, and lists and dictionaries of them.
        comm: the group.
        keep: how many checkpoints stay, at least 1.

    Returns:
        The path of this rank's file.

    Raises:
        CheckpointError: a rank could not write (disk full, no permission); on all ranks.
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
        done: the newest step that this rank has written completely, 0 before the first.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.done = 0
        self._folder, self._keep = folder, keep
        self._rank, self._previous = 0, 0
        self._writing: Path | None = None
        self._writes = TaskRegistry()  # of its own: a slow disk delays no group
        self._task: BackgroundTask[None] | None = None

    def start(self, step: int, state: Mapping[str, Any], rank: int, size: int, mark: str = "") -> None:
        """Copy `state` and start writing it, after waiting for the previous write, as `settle` does.

        Args:
            step: the step after which `state` was taken, at least 1.
            state: as of `save`; it may change as soon as this returns.
            rank: of this worker now.
            size: of the group now.
            mark: tells apart the groups that may write the same step, so that their files are not taken for one
                checkpoint; the same on all ranks.

        Raises:
            CheckpointError: the previous write failed; this one was not started.
        """
        self.settle()
        content = content_of(step, _copied(dict(state)), rank, size, mark)
        self._rank, self._previous, path = rank, self.done, path_of(self._folder, step, rank)
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
            CheckpointError: it failed, which is reported once, or is stuck. Older checkpoints are untouched.
        """
        if not self._task:
            return
        with Wait(f"{self._writing or self._folder} to be written"):
            self._task.wait(PATIENCE)
        if self._writing:
            raise CheckpointError(f"{self._writing}: still being written after {PATIENCE:g} s; check the disk")
        task, self._task = self._task, None
        task.result()

    def agree(self, comm: Comm) -> None:
        """Wait until all ranks have written, then remove all but the newest `keep` checkpoints. Collective.

        Raises:
            CheckpointError: a rank could not write; on all ranks. Older checkpoints are untouched.
        """
        problem = ""
        try:
            self.settle()
        except CheckpointError as error:
            problem = str(error)
        problems = [text for text in gather_text(problem, comm) if text]
        if problems:
            if self.done > self._previous:
                remove_file(path_of(self._folder, self.done, self._rank))
                self.done = self._previous
            raise CheckpointError(problems[0])
        for abandoned in (step for step in steps_in(self._folder, self._rank) if step > self.done > 0):
            remove_file(path_of(self._folder, abandoned, self._rank))  # the run went back to before them
        self.prune(self.done)

    def prune(self, common: int) -> None:
        """Remove what is older than the newest `keep` checkpoints, up to `done`, that are complete in this folder.

        Where each rank has its own disk, none is complete; there it removes what is older than the newest `keep`
        files of this rank among the steps up to `common`. Workers that keep dying as they write can leave too
        few of either, and files pile up: then all but those and the newest `keep` + 8 steps are removed. With a
        step, the files of all ranks are removed: those who wrote them may have left.

        Args:
            common: a step that all ranks have written, such as their `done` where all have the same.
        """
        steps = [step for step in steps_in(self._folder) if step <= self.done]
        own = [step for step in steps_in(self._folder, self._rank) if step <= min(common, self.done)]
        complete = [*itertools.islice((step for step in steps if _looks_complete(self._folder, step)), self._keep)]
        kept, oldest = {*complete, *own[: self._keep]}, 0
        for candidates, count in ((complete, self._keep), (own, self._keep), (steps, self._keep + _MORE)):
            oldest = max(oldest, candidates[count - 1] if len(candidates) >= count else 0)
        for step in steps:
            if step < oldest and step not in kept:
                remove_step(self._folder, step)


def _looks_complete(folder: Path, step: int) -> bool:
    """Return whether all files of a step are in the folder, by their labels: none of them is read."""
    label = label_of(path_of(folder, step, 0))
    return bool(label) and all(label_of(path_of(folder, step, rank)) == label for rank in range(1, label[0]))


def _copied(value: Any) -> Any:
    """Return a nest of lists and dictionaries with copies of its tensors, in host memory."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        result = copy.copy(value)  # with the metadata of a module's state dict
        for key, inner in value.items():
            result[key] = _copied(inner)
        return result
    if isinstance(value, list | tuple):
        return type(value)(map(_copied, value))
    return value
