"""Finding and reading the newest checkpoint that is complete."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch

from swarmstep.checkpoint.file import read_content
from swarmstep.checkpoint.folder import path_of, steps_in
from swarmstep.comm.base import Comm
from swarmstep.comm.gather_text import gather_text
from swarmstep.errors import CheckpointError
from swarmstep.seeding import mix

_COMPARED = 16  # newest steps that the ranks compare


def load(folder: Path, comm: Comm) -> dict[str, Any]:
    """Return this rank's `state` of the newest checkpoint that all ranks have intact. Collective.

    A newer one that is not intact everywhere is skipped; rank 0 warns, and says why.

    Raises:
        CheckpointError: there is none, or files are foreign or of another number of workers; on all ranks.
    """
    steps = steps_in(folder, comm.rank)[:_COMPARED]
    problem = ""
    listed = torch.full((_COMPARED + 1, 2), -1)  # (step, mark) of each intact file, and the newest step of all
    listed[_COMPARED, 0] = max(steps, default=-1)
    for row, step in zip(listed, steps, strict=False):
        try:
            content = read_content(path_of(folder, step, comm.rank), step, comm.rank, comm.size)
            row.copy_(torch.tensor([step, mix(content["mark"])]))
        except CheckpointError as error:
            problem = problem or str(error)
    rows = comm.gather(listed)
    problems = [text for text in gather_text(problem, comm) if text]
    latest = int(rows[:, _COMPARED, 0].max())
    held = [{(step, mark) for step, mark in row if step >= 0} for row in rows[:, :_COMPARED].tolist()]
    common = set[tuple[int, int]].intersection(*held)
    if not common:
        without = next((rank for rank, pairs in enumerate(held) if not pairs), 0)
        problems.append(f"{folder}: no checkpoint that all ranks have; rank {without} has none")
        raise CheckpointError(problems[0])
    step = max(common)[0]
    if comm.rank == 0 and step < latest:
        problems.append(f"{folder}: the checkpoint of step {latest} is not there on all ranks")
        warnings.warn(f"{problems[0]}; going back to step {step}", stacklevel=2)
    return read(path_of(folder, step, comm.rank), step, comm.rank, comm.size)


def load_own_or_all(folder: Path, comm: Comm) -> dict[int, dict[str, Any]]:
    """Return, by rank, this rank's state of the newest checkpoint that all ranks have intact. Collective.

    Where the newest complete one is of another number of workers, those of all its ranks.

    Raises:
        CheckpointError: as `load`.
    """
    try:
        return {comm.rank: load(folder, comm)}
    except CheckpointError:
        states = load_any(folder)[1]
        if len(states) == comm.size:
            raise
        return dict(enumerate(states))


def check_same_step(folder: Path, step: int, comm: Comm) -> None:
    """Raise CheckpointError, on all ranks, unless all have found a checkpoint of the same step. Collective."""
    if len({*comm.gather(torch.tensor(step)).tolist()}) > 1:
        raise CheckpointError(
            f"{folder}: the workers see different checkpoints; put it where all of them see the same files"
        )


def newest(folder: Path) -> int:
    """Return the step of the newest complete checkpoint in `folder`, of any number of ranks.

    Raises:
        CheckpointError: there is none; names what is missing or damaged.
    """
    return _newest(folder)[0]


def load_any(folder: Path) -> tuple[int, list[dict[str, Any]]]:
    """Return the step and the states of all ranks, in rank order, of the newest complete checkpoint.

    Not collective; `folder` holds the files of all ranks. A newer checkpoint that is not complete is skipped,
    with a warning that says why.

    Raises:
        CheckpointError: as `newest`.
    """
    step, states, problem = _newest(folder)
    if problem:
        warnings.warn(f"{problem}; going back to step {step}", stacklevel=2)
    return step, states


def _newest(folder: Path) -> tuple[int, list[dict[str, Any]], str]:
    """Return step and states of the newest complete checkpoint, and what is wrong with a newer one, if any."""
    problem = ""
    for step in steps_in(folder):
        try:
            return step, _states(folder, step), problem
        except CheckpointError as error:
            problem = problem or str(error)
    raise CheckpointError(problem or f"{folder}: expected a checkpoint (step-N/rank-N.pt), found none; start anew")


def _states(folder: Path, step: int) -> list[dict[str, Any]]:
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
