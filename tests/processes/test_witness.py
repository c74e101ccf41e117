"""Witnesses: who is stopped or gone is not vouched for, who only does not answer is."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from swarmstep.comm.interfaces import own_address
from swarmstep.comm.witness import Witness, vouched

SOON = 60.0  # seconds; a hang, not a measurement
WATCHED = """
import ctypes, sys
from swarmstep.comm.witness import Witness
witness = Witness("127.0.0.1")
print(witness.address, witness._process.pid, flush=True)
ctypes.PyDLL(None).pause()  # holds the interpreter lock for ever
"""


@pytest.fixture
def watched() -> Iterator[tuple[subprocess.Popen[str], str, int]]:
    """Return a process that holds its interpreter lock, and its witness's address and process id."""
    process = subprocess.Popen([sys.executable, "-c", WATCHED], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    address, pid = process.stdout.readline().split()
    yield process, address, int(pid)
    process.kill()
    process.wait()
    process.stdout.close()


def until(true: Callable[[], Any]) -> None:
    deadline = time.monotonic() + SOON
    while not true():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.01)


def test_who_holds_the_lock_lives_and_who_is_stopped_does_not(
    watched: tuple[subprocess.Popen[str], str, int],
) -> None:
    process, address, pid = watched
    assert vouched([address], SOON) == {address}
    process.send_signal(signal.SIGSTOP)
    until(lambda: not vouched([address], SOON))
    process.send_signal(signal.SIGCONT)
    until(lambda: vouched([address], SOON))
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        os.kill(pid, number)  # to all processes of a job: the witness is none of them
    assert vouched([address], SOON) == {address}


def test_it_ends_with_its_process(watched: tuple[subprocess.Popen[str], str, int]) -> None:
    process, address, pid = watched
    process.kill()
    process.wait()
    assert vouched([address], SOON) == set()
    until(lambda: not Path(f"/proc/{pid}").exists())


def test_one_that_does_not_answer_keeps_nobody_from_being_heard() -> None:
    witness = Witness("127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as mute, contextlib.closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        others = [f"127.0.0.1:{end.getsockname()[1]}" for end in (mute, free)]
        assert vouched([*others, witness.address], 1.0) == {witness.address}
    witness.end()
    assert vouched([witness.address], SOON) == set()


def test_the_address_is_that_of_the_interface_or_towards_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    assert own_address("127.0.0.1") == "127.0.0.1"
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo,eth0")
    assert own_address("192.0.2.1") == "127.0.0.1"
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "no-such-one")
    assert own_address("127.0.0.1") == "127.0.0.1"
