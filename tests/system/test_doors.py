"""A live run that is attacked at its door: nothing of it changes. And nothing unpickles what it receives."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from safetensors.numpy import load_file

from swarmstep.comm.secure.tls import contexts
from tests.system.test_machines import LIMIT, SECRET, Machine

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

HANDSHAKES = 1000
SOON = 600.0  # seconds; far beyond what any wait here should take
OTHER_MODEL = """
import dataclasses
from torch import nn
from swarmstep.workloads import load

workload = dataclasses.replace(load("digits"), models={"other": lambda: nn.Linear(64, 10)})
"""
RUN = ["--workers", "2", "--elastic", "local", "--listen", "127.0.0.1:0", "--steps", "200", "--every", "4"]
# The interpreter of each process of the run loads this, and tells what it unpickles, and from where.
HOOK = """
import os, sys, traceback

def hook(event, args):
    if event == "pickle.find_class":
        with open(os.environ["UNPICKLED"], "a") as file:
            file.write(f"{args}: {[(f.filename, f.name) for f in traceback.extract_stack()[-4:]]}\\n")

def present():
    open(os.environ["UNPICKLED"] + f".{os.getpid()}", "w").close()

sys.addaudithook(hook)
os.register_at_fork(after_in_child=present)
present()
"""


def hooked(folder: Path) -> Path:
    (folder / "sitecustomize.py").write_text(HOOK)
    return folder


def client_hello(context: ssl.SSLContext) -> bytes:
    """Return the first bytes of a real handshake."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname="swarmstep").do_handshake()
    return outgoing.read()


def first_flight(context: ssl.SSLContext, rng: random.Random) -> bytes:
    """Return bytes of no form, or a handshake that is cut off, altered in one bit, or doubled."""
    hello = client_hello(context)
    place = rng.randrange(len(hello))
    altered = bytearray(hello)
    altered[place] ^= 1 << rng.randrange(8)
    return rng.choice([rng.randbytes(rng.randrange(300)), hello[:place], bytes(altered), hello + hello])


def attack(port: int, seed: int) -> None:
    """Make 1000 handshakes that are none; every tenth is never ended, and every 20th is of an old secret."""
    rng, left = random.Random(seed), list[socket.socket]()
    true, old = contexts(SECRET.encode()).worker, contexts(b"an old secret, replaced").worker
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    for number in range(HANDSHAKES):
        connection = socket.create_connection(("127.0.0.1", port), LIMIT)
        with contextlib.suppress(OSError):
            if number % 20 == 0:
                connection = old.wrap_socket(connection, server_hostname="swarmstep")
            connection.sendall(first_flight(true, rng))
        if number % 10 == 5:
            left.append(connection)
        else:
            connection.close()
    for connection in left:
        connection.close()


class Attacked(NamedTuple):
    """Two runs, one of them attacked."""

    quiet: Machine
    first: Machine
    others: list[tuple[int, str]]
    unpickled: Path


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attacked]:
    place, hook = tmp_path_factory.mktemp("doors"), hooked(tmp_path_factory.mktemp("hook"))
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        patch.chdir(place)
        Path("own.py").write_text(OTHER_MODEL)
        patch.setenv("PYTHONPATH", str(hook), prepend=os.pathsep)
        patch.setenv("UNPICKLED", str(place / "unpickled"))
        for name in ("SWARMSTEP_SECRET_FILE", "GLOO_SOCKET_IFNAME", "RANK", "WORLD_SIZE", "SWARMSTEP_WORKER"):
            patch.delenv(name, raising=False)

        def run(number: int, *options: str, workload: str = "digits") -> Machine:
            machine = Machine(None, number, *options, workload=workload)
            stack.callback(machine.process.wait)
            stack.callback(machine.process.kill)
            return machine

        quiet = run(0, *RUN, "--checkpoint-every", "100")
        assert quiet.process.wait(SOON) == 0, quiet.said()
        first = run(1, *RUN, "--checkpoint-every", "100", "--pace", "0.5")
        proxy = first.proxy()
        first.until((first.folder / "events" / "0.jsonl").exists)
        attack(int(proxy.rpartition(":")[2]), 0)
        others = [run(2, "--join", proxy, "--batch", "7"), run(3, "--join", proxy, workload="own.py:workload")]
        ends = [(other.process.wait(SOON), other.said()) for other in others]
        assert first.process.poll() is None, "the run has ended before the attack did: the test says nothing"
        yield Attacked(quiet, first, ends, place / "unpickled")


def test_a_thousand_handshakes_and_a_member_with_other_settings_change_nothing(attacked: Attacked) -> None:
    for (code, said), why in zip(
        attacked.others, ("--batch 7: the run to join has", "WORKLOAD own.py:workload: models: "), strict=True
    ):
        assert code == 2
        assert said.startswith(f"swarmstep: {why}")
    assert attacked.first.process.wait(SOON) == 0
    said = attacked.first.said()
    assert "which does not know the secret" in said
    assert "which does not speak TLS 1.3" in said or "disconnected" in said
    assert "is lost" not in said
    assert len(said.splitlines()) < 20
    found, expected = (load_file(m.folder / "model.safetensors") for m in (attacked.first, attacked.quiet))
    assert {name: array.tobytes() for name, array in found.items()} == {
        name: array.tobytes() for name, array in expected.items()
    }


def test_no_process_of_a_run_unpickles_anything(attacked: Attacked) -> None:
    """As its interpreters say themselves; checkpoints are written and the store is read meanwhile."""
    folder = attacked.unpickled.parent
    assert len(list(folder.glob("unpickled.*"))) >= 8  # two runs: command, what forks, and two workers
    assert not attacked.unpickled.exists(), attacked.unpickled.read_text()


def test_the_hook_would_tell(tmp_path: Path) -> None:
    code = "import collections, pickle; pickle.loads(pickle.dumps(collections.OrderedDict()))"
    environment = {**os.environ, "PYTHONPATH": str(hooked(tmp_path)), "UNPICKLED": str(tmp_path / "found")}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    assert "OrderedDict" in (tmp_path / "found").read_text()
