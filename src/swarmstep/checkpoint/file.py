"""One rank's file of a checkpoint: written atomically, read as data only."""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch

from swarmstep.errors import CheckpointError

FORMAT = "swarmstep checkpoint 1"
_DIGEST = 32  # bytes of a SHA-256
_LABEL = struct.Struct(">8sQ16s")  # a word to know it by, the size of the group, and what tells its mark apart
_WORD = b"swarmgrp"
_KINDS = {int: "a number", str: "a text", dict: "a dictionary"}


def path_of(folder: Path, step: int, rank: int) -> Path:
    """Return where a rank's file of a step is."""
    return folder / f"step-{step:08d}" / f"rank-{rank:05d}.pt"


def content_of(step: int, state: dict[str, Any], rank: int, size: int, mark: str) -> dict[str, Any]:
    """Return what goes into a file."""
    return {"format": FORMAT, "step": step, "rank": rank, "size": size, "mark": mark, "state": state}


def write(path: Path, content: dict[str, Any]) -> None:
    """Write a file atomically; OSError or RuntimeError where that cannot be, and nothing is left of it then."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    try:
        with partial.open("w+b") as file:
            torch.save(content, file)
            file.write(_LABEL.pack(_WORD, *_group(content)))
            file.write(_digest(file, file.tell()))
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        for folder in (path.parent, path.parent.parent):  # the new names, too, outlive a loss of power
            _flush(folder)
    except BaseException:
        for leave in (partial.unlink, path.parent.rmdir):  # the latter if nothing else is in it
            with contextlib.suppress(OSError):
                leave()
        raise


def _flush(folder: Path) -> None:
    with contextlib.suppress(OSError):  # some systems cannot do so with folders
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def group_of(path: Path) -> tuple[int, bytes] | None:
    """Return the size of the group that wrote a file and what tells its mark apart; None where it cannot be said.

    Only the end of the file is read, so damage before it is not noticed; a file of versions without a label is
    opened, but its tensors are not read.
    """
    try:
        with path.open("rb") as file:
            file.seek(-_DIGEST - _LABEL.size, os.SEEK_END)
            word, *group = _LABEL.unpack(file.read(_LABEL.size))
        if word == _WORD:
            return group[0], group[1]
        return _group(torch.load(path, map_location="cpu", weights_only=True, mmap=True))
    except Exception:  # whatever a foreign file leads to
        return None


def _group(content: Mapping[str, Any]) -> tuple[int, bytes]:
    return int(content["size"]), hashlib.sha256(content.get("mark", "").encode()).digest()[:16]


def remove_all(folder: Path, step: int) -> None:
    """Remove the files of all ranks of a step; nothing fails."""
    place = path_of(folder, step, 0).parent
    with contextlib.suppress(OSError):  # another rank may do so at the same time
        for file in place.glob("rank-*"):
            file.unlink(missing_ok=True)
        place.rmdir()


def remove(path: Path) -> None:
    """Remove a file, what a crash left of it, and its folder if that is empty then; nothing fails."""
    for file in (path, path.with_suffix(".partial")):  # the latter after a crash while it was written
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # other ranks still have files there
        path.parent.rmdir()


def read_content(
    path: Path, step: int, rank: int, size: int | None = None, mark: str | None = None
) -> dict[str, Any]:
    """Return the content of one rank's file, of any size and mark where they are not given."""
    try:
        with path.open("rb") as file:
            whole = _digest(file, path.stat().st_size - _DIGEST) == file.read()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({_first_line(error)})") from error
    if not whole:
        raise CheckpointError(f"{path}: half-written, damaged or foreign: its digest does not fit")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a foreign file leads to
        raise CheckpointError(f"{path}: not a swarmstep checkpoint ({_first_line(error)})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: not a swarmstep checkpoint (expected a dictionary)")
    content.setdefault("mark", "")  # older files have none
    _check(path, content, {"format": FORMAT, "step": step, "rank": rank, "size": size, "mark": mark})
    return content


def _check(path: Path, content: dict[Any, Any], expected: Mapping[str, Any]) -> None:
    """Raise CheckpointError unless the fields have the values expected (None: any), and their types."""
    for field, value in expected.items():
        found = content.get(field, "nothing")
        if value is not None and (type(found) is not type(value) or found != value):
            said = repr(found).split("\n")[0][:80]
            raise CheckpointError(f"{path}: {field}: expected {value!r}, found {said}")
    for field, kind in {"size": int, "mark": str, "state": dict}.items():
        found = content.get(field)
        if not isinstance(found, kind):
            raise CheckpointError(f"{path}: {field}: expected {_KINDS[kind]}, found {type(found).__name__}")


def unwritable(path: Path, error: BaseException) -> CheckpointError:
    """Return what to raise where `write` failed."""
    cause, deeper = error, error.__context__  # torch reports a full disk as RuntimeError, raised from the OSError
    while deeper:
        cause = deeper if isinstance(deeper, OSError) and not isinstance(cause, OSError) else cause
        deeper = deeper.__context__
    return CheckpointError(
        f"{path}: cannot be written ({_first_line(cause)}); free space, or choose another folder"
    )


def _digest(file: IO[bytes], size: int) -> bytes:
    """Return the SHA-256 of the first `size` bytes, and stay behind them."""
    digest = hashlib.sha256()
    file.seek(0)
    while size > 0 and (block := file.read(min(size, 1 << 20))):
        digest.update(block)
        size -= len(block)
    file.seek(0, os.SEEK_CUR)  # between reading and writing
    return digest.digest()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().split("\n")[0] or type(error).__name__)[:200]
