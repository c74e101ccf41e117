"""The tests of this folder, and those of conformance, start no process: whoever tries fails."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from forking import Popen


@pytest.mark.parametrize(
    "start",
    [
        lambda: subprocess.run(["true"], check=True),
        lambda: subprocess.Popen("true", shell=True),
        lambda: Popen(["true"]),
        lambda: os.system("true"),
        lambda: os._exit(1) if os.fork() == 0 else None,
        lambda: os.posix_spawn("/bin/true", ["true"], {}),
        *(
            lambda how=how: multiprocessing.get_context(how).Process().start()
            for how in multiprocessing.get_all_start_methods()
        ),
    ],
)
def test_no_process_is_started(start: Callable[[], Any]) -> None:
    with pytest.raises(pytest.fail.Exception, match=r"starts a process: move it to tests/processes or system"):
        start()
