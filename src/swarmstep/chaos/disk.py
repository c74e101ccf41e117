"""A small file system for the checkpoints of a run, which can be filled up, and made read-only."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from swarmstep.errors import CommError, UsageError

NAME = "swarmstep-chaos-"  # of a mount; followed by the pid of the process that made it
MOUNTS = Path("/proc/self/mounts")
SIZE = 256 << 20  # bytes
BLOCK = 1 << 20
TRIES, PAUSE = 40, 0.05  # to make it read-only, which nobody may be writing to at that moment; seconds between


class Disk:
    """A tmpfs; a context manager that unmounts it on exit, with everything on it.

    Args:
        folder: mount point; created.

    Raises:
        UsageError: this process may not mount it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._filler = folder / "full"

    def __enter__(self) -> Disk:
        self._folder.mkdir(parents=True, exist_ok=True)
        _mount(self._folder)
        return self

    def __exit__(self, *exception: object) -> None:
        _unmount(self._folder)

    def fill(self) -> None:
        """Use up all free space."""
        with self._filler.open("ab", buffering=0) as file, contextlib.suppress(OSError):
            for size in (BLOCK, 4096):
                with contextlib.suppress(OSError):
                    while file.write(bytes(size)) == size:
                        pass

    def free(self) -> None:
        """Release the space again."""
        self._filler.unlink(missing_ok=True)

    def lock(self) -> None:
        """Make it read-only; raise CommError where somebody writes all the time."""
        error = ""
        for _ in range(TRIES):
            error = _error_of("mount", "-o", "remount,ro", str(self._folder))
            if not error:
                return
            time.sleep(PAUSE)
        raise CommError(f"{self._folder} cannot be made read-only: {error}")

    def unlock(self) -> None:
        """Make it writable again."""
        _error_of("mount", "-o", "remount,rw", str(self._folder))


def check_rights() -> None:
    """Raise UsageError if this process cannot mount a file system; the message says what is missing."""
    missing = [] if sys.platform.startswith("linux") else ["Linux"]
    missing += [] if hasattr(os, "geteuid") and os.geteuid() == 0 else ["root"]
    if missing:
        raise UsageError(f"a file system of its own needs {', '.join(missing)}, which this process does not have")
    with tempfile.TemporaryDirectory(prefix="swarmstep-") as name:  # root in a container often may not mount
        _mount(Path(name))
        _unmount(Path(name))


def remove_leftovers() -> None:
    """Unmount the file systems of processes that no longer exist."""
    for line in MOUNTS.read_text().splitlines() if MOUNTS.exists() else []:
        source, folder, *_ = line.split(" ")
        match = re.fullmatch(rf"{NAME}(\d+)", source)
        if match and not Path(f"/proc/{match[1]}").exists():
            _error_of("umount", "--lazy", _unescaped(folder))


def _unescaped(text: str) -> str:
    """Return a path of the mount table, in which the kernel writes blanks as octal escapes."""
    return re.sub(r"\\([0-7]{3})", lambda digits: chr(int(digits[1], 8)), text)


def _mount(folder: Path) -> None:
    error = _error_of("mount", "-t", "tmpfs", "-o", f"size={SIZE}", f"{NAME}{os.getpid()}", str(folder))
    if error:
        raise UsageError(f"a file system of its own cannot be mounted: {error}")


def _unmount(folder: Path) -> None:
    error = _error_of("umount", "--lazy", str(folder))  # at once, even if a file is still open
    if error:
        raise CommError(f"{folder} cannot be unmounted: {error}; run: umount {folder}")


def _error_of(*command: str) -> str:
    """Run a command and return its error in one line; "" if it succeeded."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, start_new_session=True)
    except OSError as error:
        return f"{command[0]}: {error.strerror}"
    return " ".join(done.stderr.split()) or f"exit code {done.returncode}" if done.returncode else ""
