"""Where the data lie, and how missing files come there from the official mirrors."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tarfile
import tempfile
import urllib.request
import zlib
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError

from swarmstep.errors import DataError

ENVIRONMENT = "SWARMSTEP_DATA"


@dataclass(frozen=True)
class Archive:
    """A file on a mirror: its address, the md5 sum of its content (hex), and the `files` it brings.

    A ``.tar.gz`` brings the members of those names, whatever folder they lie in; anything else is itself the
    one file.
    """

    url: str
    md5: str
    files: tuple[str, ...]


def data_folder(data: Path | None) -> Path:
    """Return the data folder, absolute: `data`, or else the environment's SWARMSTEP_DATA, or else ./data."""
    return (data or Path(os.environ.get(ENVIRONMENT) or "data")).expanduser().absolute()


def find(folder: Path, name: str) -> Path | None:
    """Return the file `name` in `folder`; for a ``.gz`` its unpacked form is preferred; None if missing."""
    for candidate in (folder / name.removesuffix(".gz"), folder / name):
        if os.path.isfile(candidate):  # False, not an error, in a folder that may not be entered
            return candidate
    return None


def fetch(archives: Sequence[Archive], folder: Path, timeout: float = 30.0) -> list[Path]:
    """Return the paths of all files of `archives` in `folder`, downloading the archives of missing ones.

    Files already there are left alone. Several processes may call this at once: one of them downloads
    (where the system has file locks) and each file appears whole or not at all. `timeout` is the longest
    silence of a mirror, in seconds. Raises DataError, naming files and folder, where something is missing and
    cannot be had.
    """
    if _missing(archives, folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with _alone(folder):
                for archive in archives:
                    if _missing([archive], folder):  # else another process was faster
                        _install(archive, folder, timeout)
        except (OSError, HTTPException, ValueError, tarfile.TarError, EOFError, zlib.error) as error:
            names = ", ".join(_missing(archives, folder))
            raise DataError(
                f"missing in {folder}: {names}; the download failed ({' '.join(str(error).split())}); "
                f"put the files there, or name the data folder with --data or {ENVIRONMENT}"
            ) from error
    found = [find(folder, name) for archive in archives for name in archive.files]
    return [file for file in found if file is not None]


def _missing(archives: Sequence[Archive], folder: Path) -> list[str]:
    return [name for archive in archives for name in archive.files if find(folder, name) is None]


@contextmanager
def _alone(folder: Path) -> Generator[None, None, None]:
    """Hold a lock on `folder`, where there are such; without one, work is done twice but not wrongly."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # file systems without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)  # also lets go of the lock


def _install(archive: Archive, folder: Path, timeout: float) -> None:
    with tempfile.TemporaryDirectory(prefix=".download-", dir=folder) as name:
        staging = Path(name)
        packed = staging / "archive"
        _download(archive, packed, timeout)
        if archive.url.endswith(".tar.gz"):
            _unpack(packed, archive, staging)
        else:
            packed.rename(staging / archive.files[0])
        for file in archive.files:
            if find(folder, file) is None:
                os.replace(staging / file, folder / file)


def _download(archive: Archive, target: Path, timeout: float) -> None:
    print(f"downloading {archive.url} to {target.parent.parent}", file=sys.stderr)
    digest = hashlib.md5(usedforsecurity=False)
    try:
        with urllib.request.urlopen(archive.url, timeout=timeout) as reply, target.open("wb") as out:
            while block := reply.read(1 << 20):
                digest.update(block)
                out.write(block)
    except (OSError, HTTPException) as error:
        if isinstance(error, HTTPError):
            error.close()  # it holds the connection
        raise OSError(f"{archive.url}: {error}") from error
    if digest.hexdigest() != archive.md5:
        raise ValueError(f"{archive.url}: expected md5 {archive.md5}, found {digest.hexdigest()}")


def _unpack(packed: Path, archive: Archive, staging: Path) -> None:
    """Copy the expected members, and nothing else, to `staging` under their bare names."""
    wanted = set(archive.files)
    with tarfile.open(packed, "r:gz") as tar:
        for member in tar:
            name = member.name.rpartition("/")[2]
            if name in wanted and member.isfile() and (source := tar.extractfile(member)):
                with source, (staging / name).open("wb") as out:
                    shutil.copyfileobj(source, out)
                wanted.discard(name)
    if wanted:
        raise ValueError(f"{archive.url}: lacks {', '.join(sorted(wanted))}")
