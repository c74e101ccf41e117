"""The end of a program that has tasks in the background."""

from __future__ import annotations

import subprocess
import sys

import pytest

from whole_runs import fast_if

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


UNFINISHED = """
import sys
from torch import nn
from swarmstep import LocalSGD, Synchronizer, simulate

def train(comm):
    sync = Synchronizer(nn.Linear(1, 1), LocalSGD(), comm)
    sync.step(1.0)
    if sys.argv[1] == "finish":
        sync.finish()
    if sys.argv[1] == "save":
        sync.state_dict()
    if sys.argv[1] == "kept":
        sys.modules["kept"] = sync

simulate(train, 1)
print("end", flush=True)
"""


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize(
    ("what", "warns"), [("finish", 0), fast_if(False, "save", 0), fast_if(False, "drop", 1), ("kept", 1)]
)
def test_a_program_that_ends_without_finish_is_warned(what: str, warns: int) -> None:
    flags = (
        ["-B"] if what == "kept" else []
    )  # an interpreter of its own: a forked one has no end that finalizers see
    done = subprocess.run(
        [sys.executable, *flags, "-c", UNFINISHED, what], capture_output=True, text=True, check=False
    )
    assert done.stderr.count("a Synchronizer ended without finish, after step 1:") == warns
    assert (done.returncode, done.stdout) == (0, "end\n")
