"""A limit of one process's memory, so low that the kernel ends it: a cgroup of its own."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from pathlib import Path

from swarmstep.errors import UsageError

ROOT = Path("/sys/fs/cgroup")
LIMIT = 1 << 18  # bytes that it may get from now on, or have in all: less than a training step needs
NAME = "swarmstep-chaos-"  # of a cgroup; followed by the pid of the process in it
LIMITS = ("memory.limit_in_bytes", "memory.max")  # the file of version 1, and of 2


class MemoryLimit:
    """A cgroup with one process, from now on until `remove`.

    Args:
        pid: of the process.

    Raises:
        UsageError: there may be none.
    """

    def __init__(self, pid: int) -> None:
        self._parent, self._folder = _make(f"{NAME}{pid}")
        with contextlib.suppress(ProcessLookupError):  # it has ended by itself
            (self._folder / "cgroup.procs").write_text(str(pid))

    def remove(self) -> None:
        """Let the process, if it is still there, have memory as before."""
        for _ in range(50):  # one that is being ended leaves its cgroup a little later
            for pid in (self._folder / "cgroup.procs").read_text().split():
                with contextlib.suppress(OSError):
                    (self._parent / "cgroup.procs").write_text(pid)
            with contextlib.suppress(OSError):
                self._folder.rmdir()
                return
            time.sleep(0.02)


def check_rights() -> None:
    """Raise UsageError if this process cannot limit the memory of another."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        raise UsageError("a limit of memory needs Linux and root, which this process does not have")
    _make(f"{NAME}check-{os.getpid()}")[1].rmdir()


def _make(name: str) -> tuple[Path, Path]:
    """Return this process's memory cgroup, and a new one below it that is limited."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("memory", ""):
            continue
        parent = (ROOT / controllers if controllers else ROOT) / path.lstrip("/")
        folder = parent / name
        try:
            folder.mkdir()
            for limit in LIMITS:
                if (folder / limit).exists():
                    (folder / limit).write_text(str(LIMIT))
                    return parent, folder
            folder.rmdir()
        except OSError:
            with contextlib.suppress(OSError):
                folder.rmdir()
    raise UsageError(
        "a limit of memory needs a memory cgroup in which this process may make another; there is none"
    )
