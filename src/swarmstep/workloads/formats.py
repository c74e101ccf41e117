"""Readers of the two file formats: idx (MNIST, digits) and the CIFAR-10 binary records.

Files are judged by magic number, size and label range, never by checksum: any data in the format will do.
Pixels stay uint8.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from swarmstep.errors import DataError
from swarmstep.workloads.base import Examples

_RECORD = 1 + 3 * 32 * 32  # a label, then the red, green and blue planes


def read_idx(file: Path, item: tuple[int, ...]) -> Tensor:
    """Return the bytes of an idx file, uint8 [N, *item], N >= 1; what ends in ``.gz`` is unpacked on the way.

    Raises DataError where the file cannot be read or unpacked, or is no idx file of unsigned bytes of that
    shape and exactly the size it claims.
    """
    content = _content(file)
    ndim = 1 + len(item)
    header = 4 + 4 * ndim
    magic = bytearray((0, 0, 8, ndim))
    if content[:4] != magic:
        found = content[:4].hex() or "an empty file"
        raise DataError(f"{file}: expected an idx file with magic number {magic.hex()}, found {found}; {_REPLACE}")
    shape = tuple(int.from_bytes(content[i : i + 4], "big") for i in range(4, header, 4))
    if shape[0] == 0 or shape[1:] != item:
        raise DataError(f"{file}: expected a shape of (N, {', '.join(map(str, item))}), found {shape}; {_REPLACE}")
    expected = torch.Size(shape).numel()
    found = len(content) - header
    if found != expected:
        raise DataError(f"{file}: expected {expected} bytes after the header, found {found}; {_REPLACE}")
    return torch.frombuffer(content, dtype=torch.uint8, offset=header).view(shape)


def read_idx_pair(images: Path, labels: Path, item: tuple[int, ...], classes: int) -> Examples:
    """Return the examples of an image file and its label file: inputs uint8 [N, *item], targets int64 [N].

    Raises DataError as `read_idx` does, and where the counts differ or a label is not in [0, classes).
    """
    inputs, targets = read_idx(images, item), read_idx(labels, ())
    if len(inputs) != len(targets):
        raise DataError(
            f"{images} holds {len(inputs)} images but {labels} holds {len(targets)} labels; {_REPLACE}"
        )
    _check_labels(labels, targets, classes)
    return Examples(inputs, targets.long())


def read_cifar(files: Sequence[Path]) -> Examples:
    """Return the records of all `files` in order: inputs uint8 [N, 3, 32, 32], targets int64 [N].

    The records are held once; `inputs` is a view of them. Raises DataError where a file cannot be read, is
    empty, is not a whole number of 3,073-byte records, or holds a label above 9.
    """
    counts = [_records(file) for file in files]
    content = bytearray(sum(counts) * _RECORD)
    rows = torch.frombuffer(content, dtype=torch.uint8).view(-1, _RECORD)
    first = 0
    for file, count in zip(files, counts, strict=True):
        try:
            with file.open("rb") as stream:
                stream.readinto(memoryview(content)[first * _RECORD : (first + count) * _RECORD])
        except OSError as error:
            raise _unreadable(file, error) from error
        _check_labels(file, rows[first : first + count, 0], 10)
        first += count
    return Examples(rows[:, 1:].view(-1, 3, 32, 32), rows[:, 0].long())


_REPLACE = "replace the file, or delete it to have it downloaded"


def _content(file: Path) -> bytearray:
    try:
        if file.suffix == ".gz":
            with gzip.open(file) as stream:
                return bytearray(stream.read())
        return bytearray(file.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(file, error) from error


def _records(file: Path) -> int:
    try:
        size = file.stat().st_size
    except OSError as error:
        raise _unreadable(file, error) from error
    if size == 0 or size % _RECORD:
        raise DataError(
            f"{file}: expected a whole number of {_RECORD}-byte records, found {size} bytes; {_REPLACE}"
        )
    return size // _RECORD


def _check_labels(file: Path, labels: Tensor, classes: int) -> None:
    wrong = (labels >= classes).nonzero()
    if len(wrong):
        place = int(wrong[0])
        found = f"{int(labels[place])} at example {place}"
        raise DataError(f"{file}: expected labels 0 to {classes - 1}, found {found}; {_REPLACE}")


def _unreadable(file: Path, error: Exception) -> DataError:
    return DataError(f"{file}: cannot be read ({error}); {_REPLACE}")
