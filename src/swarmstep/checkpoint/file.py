"""One rank's file of a checkpoint: written atomically, read as data only.

A file is what `torch.save` writes, then a label that tells which files belong together, then the SHA-256 of
both: the archive's own check sums do not cover all of it.
"""

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

LAYOUT = 3  # of the content; raised with each change that older versions, or newer ones, cannot read
_FORMAT = "swarmstep checkpoint "
_DIGEST = 32  # bytes of a SHA-256
_LABEL = struct.Struct(">8sQ16s")  # a magic word, the size of the group, and a digest of its mark
_MAGIC = b"swarmgrp"
_KINDS = {int: "a number", str: "a text", dict: "a dictionary"}


def content_of(step: int, state: dict[str, Any], rank: int, size: int, mark: str) -> dict[str, Any]:
    """Return the content of a file."""
    own = {"step": step, "rank": rank, "size": size, "mark": mark, "state": state}
    return {"format": f"{_FORMAT}{LAYOUT}", **own}


def write(path: Path, content: dict[str, Any]) -> None:
    """Write a file atomically.

    Raises:
        OSError, RuntimeError: it could not be written; nothing is left of it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    try:
        with partial.open("w+b") as file:
            torch.save(content, file)
            mark = hashlib.sha256(content["mark"].encode()).digest()[:16]
            file.write(_LABEL.pack(_MAGIC, content["size"], mark))
            file.write(_digest(file, file.tell()))
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        for folder in (path.parent, path.parent.parent):  # so that the new names survive a power failure, too
            _flush(folder)
    except BaseException:
        for undo in (partial.unlink, path.parent.rmdir):  # the latter only succeeds if the folder is empty
            with contextlib.suppress(OSError):
                undo()
        raise


def _flush(folder: Path) -> None:
    with contextlib.suppress(OSError):  # some systems cannot flush folders
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def label_of(path: Path) -> tuple[int, bytes] | None:
    """Return the size of the group that wrote a file and a digest of its mark; None where there is no label.

    Only the end of the file is read, so damage before it is not noticed.
    """
    try:
        with path.open("rb") as file:
            file.seek(-_DIGEST - _LABEL.size, os.SEEK_END)
            magic, size, mark = _LABEL.unpack(file.read(_LABEL.size))
    except (OSError, struct.error):
        return None
    return (size, mark) if magic == _MAGIC else None


def read_content(
    path: Path, step: int, rank: int, size: int | None = None, mark: str | None = None
) -> dict[str, Any]:
    """Return the content of one rank's file.

    Args:
        path: of the file.
        step: that it must be of.
        rank: that it must be of.
        size: of the group that it must be of (None: any).
        mark: of the group that it must be of (None: any).

    Raises:
        CheckpointError: names the file, and the field where one differs.
    """
    try:
        with path.open("rb") as file:
            intact = _digest(file, path.stat().st_size - _DIGEST) == file.read()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({_first_line(error)})") from error
    if not intact:
        raise CheckpointError(f"{path}: half-written, damaged or foreign: its digest does not match")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a foreign file leads to
        raise CheckpointError(f"{path}: not a swarmstep checkpoint ({_first_line(error)})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: not a swarmstep checkpoint (expected a dictionary)")
    _check_layout(path, content.get("format"))
    _check(path, content, {"step": step, "rank": rank, "size": size, "mark": mark})
    return content


def _check_layout(path: Path, found: Any) -> None:
    if not isinstance(found, str) or not found.startswith(_FORMAT):
        raise CheckpointError(f"{path}: not a swarmstep checkpoint (format: {_shown(found)})")
    layout = found[len(_FORMAT) :]
    if layout != str(LAYOUT):
        age = "an older" if layout.isdecimal() and int(layout) < LAYOUT else "another"
        raise CheckpointError(
            f"{path}: the checkpoint is of {age} layout: expected {LAYOUT}, found {layout[:20]}; resume with the "
            "version of swarmstep that wrote it, or start anew"
        )


def _check(path: Path, content: dict[Any, Any], expected: Mapping[str, Any]) -> None:
    """Raise CheckpointError unless the fields have the expected values (None: any) and types."""
    for field, value in expected.items():
        found = content.get(field, "nothing")
        if value is not None and (type(found) is not type(value) or found != value):
            raise CheckpointError(f"{path}: {field}: expected {value!r}, found {_shown(found)}")
    for field, kind in {"size": int, "mark": str, "state": dict}.items():
        found = content.get(field)
        if not isinstance(found, kind):
            raise CheckpointError(f"{path}: {field}: expected {_KINDS[kind]}, found {type(found).__name__}")


def _shown(value: Any) -> str:
    return repr(value).split("\n")[0][:80]


def unwritable(path: Path, error: BaseException) -> CheckpointError:
    """Return the error to raise where `write` failed."""
    cause, deeper = error, error.__context__  # torch reports a full disk as RuntimeError, raised from the OSError
    while deeper:
        cause = deeper if isinstance(deeper, OSError) and not isinstance(cause, OSError) else cause
        deeper = deeper.__context__
    return CheckpointError(
        f"{path}: cannot be written ({_first_line(cause)}); free space, or choose another folder"
    )


def _digest(file: IO[bytes], size: int) -> bytes:
    """Return the SHA-256 of the first `size` bytes, and leave the file's position after them."""
    digest = hashlib.sha256()
    file.seek(0)
    while size > 0 and (block := file.read(min(size, 1 << 20))):
        digest.update(block)
        size -= len(block)
    file.seek(0, os.SEEK_CUR)  # required between reading and writing
    return digest.digest()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().split("\n")[0] or type(error).__name__)[:200]
