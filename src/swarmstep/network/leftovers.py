"""Removes network namespaces: those of this process, and those that a killed process left behind."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal

from swarmstep.launch.enter_namespace import FOLDER
from swarmstep.network.iproute import run_or_skip

PREFIX = "swarmstep-"  # of all our namespaces; the pid of the process that made them follows


def remove_leftovers() -> None:
    """Remove the namespaces of processes that no longer exist."""
    names = [path.name for path in FOLDER.glob(f"{PREFIX}*")] if FOLDER.is_dir() else []
    for pid in {match[1] for name in names if (match := re.match(rf"{PREFIX}(\d+)-\d+-", name))}:
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            remove(f"{PREFIX}{pid}-")
        except PermissionError:
            pass  # the process is alive and belongs to another user


def remove(prefix: str) -> None:
    """Remove all namespaces whose names start with a prefix, with their interfaces and the processes inside."""
    namespaces = [path.name for path in FOLDER.glob(f"{prefix}*")] if FOLDER.is_dir() else []
    for name in namespaces:
        for pid in run_or_skip("ip", "netns", "pids", name).split():
            with contextlib.suppress(ProcessLookupError):
                if int(pid) != os.getpid():  # a thread of this process may be inside
                    os.kill(int(pid), signal.SIGKILL)
        # An open socket keeps a namespace alive even without a name, so its interfaces are deleted explicitly.
        for device in json.loads(run_or_skip("ip", "-n", name, "-j", "link", "show") or "[]"):
            if device["ifname"] != "lo":
                run_or_skip("ip", "-n", name, "link", "delete", device["ifname"])
    for name in namespaces:
        run_or_skip("ip", "netns", "delete", name)
