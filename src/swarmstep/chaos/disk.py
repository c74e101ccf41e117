"""A small file system of its own for the checkpoints, which can be filled."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from swarmstep.errors import CommError, UsageError

NAME = "swarmstep-chaos-"  # of a mount, before the pid of the process that made it
MOUNTS = Path("/proc/self/mounts")  # where the kernel lists them
SIZE = 256 << 20  # bytes
BLOCK = 1 << 20


class Disk:
    """A tmpfs; a context manager, at whose end it is gone with all that is on it.

    Args:
        folder: where it is mounted; made.

    Raises:
        UsageError: it may not be mounted here.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stone = folder / "full"

    def __enter__(self) -> Disk:
        self._folder.mkdir(parents=True, exist_ok=True)
        _mount(self._folder)
        return self

    def __exit__(self, *exception: object) -> None:
        _unmount(self._folder)

    def fill(self) -> None:
        """Leave no room on it."""
        with self._stone.open("ab", buffering=0) as file, contextlib.suppress(OSError):
            for size in (BLOCK, 4096):
                with contextlib.suppress(OSError):
                    while file.write(bytes(size)) == size:
                        pass

    def free(self) -> None:
        """Leave as much room as before."""
        self._stone.unlink(missing_ok=True)


def check_rights() -> None:
    """Raise UsageError with what this process lacks for a file system of its own."""
    lacks = [] if sys.platform.startswith("linux") else ["Linux"]
    lacks += [] if hasattr(os, "geteuid") and os.geteuid() == 0 else ["root"]
    if lacks:
        raise UsageError(f"a file system of its own needs {', '.join(lacks)}, which this process does not have")
    with tempfile.TemporaryDirectory(prefix="swarmstep-") as name:  # root in a container often may not
        _mount(Path(name))
        _unmount(Path(name))


def remove_leftovers() -> None:
    """Remove the file systems of processes that are no more, where this one may."""
    for line in MOUNTS.read_text().splitlines() if MOUNTS.exists() else []:
        source, folder, *_ = line.split(" ")
        found = re.fullmatch(rf"{NAME}(\d+)", source)
        if found and not Path(f"/proc/{found[1]}").exists():
            _run("umount", "--lazy", _unescaped(folder))


def _unescaped(text: str) -> str:
    """Return a path as it is; the kernel writes blanks and the like in octal digits."""
    return re.sub(r"\\([0-7]{3})", lambda digits: chr(int(digits[1], 8)), text)


def _mount(folder: Path) -> None:
    said = _run("mount", "-t", "tmpfs", "-o", f"size={SIZE}", f"{NAME}{os.getpid()}", str(folder))
    if said:
        raise UsageError(f"a file system of its own cannot be mounted: {said}")


def _unmount(folder: Path) -> None:
    said = _run("umount", "--lazy", str(folder))  # at once, whoever still has a file open there
    if said:
        raise CommError(f"{folder} cannot be unmounted: {said}; run: umount {folder}")


def _run(*command: str) -> str:
    """Run a command and return what went wrong, in one line."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, start_new_session=True)
    except OSError as error:
        return f"{command[0]}: {error.strerror}"
    return " ".join(done.stderr.split()) or f"exit code {done.returncode}" if done.returncode else ""
