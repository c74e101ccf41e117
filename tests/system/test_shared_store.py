"""The command on several machines that share an etcd: none of them is special."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from etcd_cluster import Cluster, needs_etcd
from swarmstep.comm.store import store_at
from swarmstep.elastic.commit_vote import COMMIT, first_verdict
from swarmstep.elastic.keys import members_key, vote_key
from swarmstep.elastic.retention import kept
from swarmstep.launch.interpreter import module_command

SOON = 400.0  # seconds; far beyond what any wait here should take


def start(store: str, *more: str) -> subprocess.Popen[str]:
    command = [*module_command("swarmstep"), "train", "digits", "--elastic", "local", "--store", store]
    command += ["--strategy", "local-sgd", "--pace", "0.1", "--no-files", *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


PROGRAM = """
import sys
import torch
from torch import nn
from swarmstep import Every, LocalSGD, Synchronizer, run

def train(comm):
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    with Synchronizer(model, LocalSGD(when=Every(4)), comm) as sync:
        for step in sync.until(10**6):
            inputs = torch.randn(8, 3)
            model(inputs).square().mean().backward()
            with torch.no_grad():
                for p in model.parameters():
                    p -= 0.1 * p.grad
            model.zero_grad()
            sync.step()

if __name__ == "__main__":
    torch.set_num_threads(1)
    run(train)
"""


def groups(store: Any) -> list[list[str]]:
    """Return the names of the members of each of the last groups that has begun."""
    found, number = list[list[str]](), kept(store)[-1]
    while store.check([members_key(number)]):
        key = first_verdict(vote_key(number))
        if store.check([key]) and store.get(key).decode().startswith(COMMIT):
            found.append([name for name, _ in json.loads(store.get(members_key(number)))])
        number += 1
    return found


def until(condition: Callable[[], Any], *processes: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + SOON
    while not condition():
        ended = [process for process in processes if process.poll() is not None]
        assert not ended, ended[0].communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.mark.slow
@needs_etcd
@pytest.mark.timeout(1800)
def test_a_program_of_ones_own_goes_on_after_the_machine_that_began_it(tmp_path: Path) -> None:
    program, other = tmp_path / "program.py", tmp_path / "other.py"
    program.write_text(PROGRAM)
    other.write_text(PROGRAM + "# of another version")
    with Cluster(tmp_path) as cluster:
        address = cluster.address()
        store = store_at(address).connect(30.0)

        def run(workers: int, path: Path) -> subprocess.Popen[str]:
            command = [
                *module_command("swarmstep"),
                "run",
                "--store",
                address,
                "--workers",
                str(workers),
                str(path),
            ]
            return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

        first = run(2, program)
        until(lambda: groups(store), first)
        second = run(1, program)
        until(lambda: len(groups(store)[-1]) == 3, first, second)
        refused = run(1, other)
        said = refused.communicate(timeout=SOON)[0]
        assert (refused.returncode, "program, SHA-256: expected" in said) == (2, True)
        first.send_signal(signal.SIGKILL)
        first.communicate(timeout=SOON)
        until(lambda: groups(store)[-1] == ["2.0"], second)
        second.send_signal(signal.SIGINT)
        said = second.communicate(timeout=SOON)[0]
        assert second.returncode in (0, 130), said


@pytest.mark.slow
@needs_etcd
@pytest.mark.timeout(1800)
def test_the_machine_that_began_the_run_dies_and_another_goes_on(tmp_path: Path) -> None:
    with Cluster(tmp_path) as cluster:
        address, steps = cluster.address(), ["--steps", "100000"]
        store = store_at(address).connect(30.0)
        first = start(address, "--workers", "2", *steps)
        until(lambda: groups(store), first)
        second = start(address, "--workers", "1", *steps)
        until(lambda: len(groups(store)[-1]) == 3, first, second)
        other = start(address, "--workers", "1", "--steps", "100001")
        said = other.communicate(timeout=SOON)[0]
        assert (other.returncode, "config, steps: expected 100000, which the run has, found 100001" in said) == (
            2,
            True,
        )
        first.send_signal(signal.SIGKILL)
        first.communicate(timeout=SOON)
        until(lambda: groups(store)[-1] == ["2.0"], second)
        second.send_signal(signal.SIGINT)
        said = second.communicate(timeout=SOON)[0]
        assert (second.returncode, "after a round" in said) == (130, True)
        late = start(address, "--workers", "1", *steps)  # one supervisor was killed, so the keys are still there
        said = late.communicate(timeout=SOON)[0]
        assert (late.returncode, "the run is over or stops" in said) == (2, True)
