"""The end of a program that has tasks in the background."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import time
from swarmstep.comm.background import TaskRegistry

def task():
    time.sleep(0.3)
    print("ended", flush=True)

TaskRegistry().start(task)  # nobody keeps the registry
"""


def test_the_program_ends_when_its_tasks_have_ended() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "ended\n")
