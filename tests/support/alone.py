"""Tests that start no process: those of the folders unit and conformance."""

from __future__ import annotations

import multiprocessing.process
import os
import platform
import subprocess
from typing import Any, NoReturn

import pytest

platform.platform()  # asks a process, once
ALONE = {"unit", "conformance"}
STARTS: list[tuple[Any, str]] = [
    (subprocess.Popen, "__init__"),
    (multiprocessing.process.BaseProcess, "start"),
    *((os, name) for name in ("fork", "forkpty", "posix_spawn", "posix_spawnp", "system")),
]


def refuse(*arguments: Any, **options: Any) -> NoReturn:
    pytest.fail("a test in tests/unit or tests/conformance starts a process: move it to tests/processes or system")


@pytest.fixture(autouse=True)
def alone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no test of these folders start a process."""
    if ALONE & {*request.path.relative_to(request.config.rootpath).parts}:
        for owner, name in STARTS:
            monkeypatch.setattr(owner, name, refuse)
