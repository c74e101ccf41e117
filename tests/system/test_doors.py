"""A live run that is attacked at its door: nothing of it changes. And nothing unpickles what it receives."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from swarmstep.comm.process_groups import connect, serve_store
from swarmstep.comm.secure.proxy import Proxy
from swarmstep.comm.secure.tls import contexts
from swarmstep.comm.secure.tunnel import open_tunnel
from tests.system.test_machines import LIMIT, SECRET, Machine, clean, start

assert all((clean, start))  # fixtures
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


def test_a_thousand_handshakes_leave_the_store_as_it_was() -> None:
    """Each is refused, nothing reaches the store, and who is connected stays so."""
    store, port = serve_store()
    secret, lines = SECRET.encode(), list[str]()
    with (
        contextlib.closing(Proxy(port, secret, report=lines.append)) as proxy,
        contextlib.closing(open_tunnel((proxy.host, proxy.port), secret)) as tunnel,
    ):
        member = connect(tunnel.host, tunnel.port, LIMIT)
        member.set("key", "value")
        before = member.num_keys()
        attack(proxy.port, 0)
        assert (member.get("key"), member.num_keys(), tunnel.error) == (b"value", before, None)
        with contextlib.closing(open_tunnel((proxy.host, proxy.port), secret)):  # and others still get in
            pass
    assert proxy.refused == HANDSHAKES
    assert len(lines) == HANDSHAKES.bit_length()
    del store


@pytest.mark.usefixtures("forked")
def test_a_thousand_handshakes_and_a_member_with_other_settings_change_nothing(
    start: Callable[..., Machine],
) -> None:
    """A run with the attack, and one without: the weights at the end are the same, bit for bit."""
    Path("own.py").write_text(OTHER_MODEL)
    quiet = start(None, 0, *RUN)
    assert quiet.process.wait(SOON) == 0, quiet.said()
    first = start(None, 1, *RUN, "--pace", "0.5")
    proxy = first.proxy()
    first.until((first.folder / "events" / "0.jsonl").exists)
    attack(int(proxy.rpartition(":")[2]), 0)
    others = [
        start(None, 2, "--join", proxy, "--batch", "7"),
        start(None, 3, "--join", proxy, workload="own.py:workload"),
    ]
    for other, why in zip(
        others, ("--batch 7: the run to join has", "WORKLOAD own.py:workload: models: "), strict=True
    ):
        assert other.process.wait(SOON) == 2
        assert other.said().startswith(f"swarmstep: {why}")
    assert first.process.poll() is None, "the run has ended before the attack did: this says nothing"
    assert first.process.wait(SOON) == 0
    said = first.said()
    assert "which does not know the secret" in said or "which does not speak TLS 1.3" in said
    assert "is lost" not in said
    assert said.count(" refused ") < 20  # not a line for each
    found, expected = (load_file(machine.folder / "model.safetensors") for machine in (first, quiet))
    assert {name: array.tobytes() for name, array in found.items()} == {
        name: array.tobytes() for name, array in expected.items()
    }


def test_no_process_of_a_run_unpickles_anything(tmp_path: Path) -> None:
    """As its interpreters say themselves, while workers meet, write checkpoints, and go on from them."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(hooked(tmp_path)), os.environ.get("PYTHONPATH", "")]),
    }
    environment["UNPICKLED"] = str(tmp_path / "unpickled")
    run = ["digits", "--workers", "2", "--elastic", "local", "--every", "4", "--checkpoint-every", "8", "--out"]
    for options in ([*run, "out", "--steps", "16"], ["--resume", "out", "--steps", "32"]):
        command = [sys.executable, "-m", "swarmstep", "train", *options]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=SOON)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "model.safetensors").exists()
    assert len(list(tmp_path.glob("unpickled.*"))) >= 8  # two commands, what forks for each, and two workers
    found = tmp_path / "unpickled"
    assert not found.exists(), found.read_text()


def test_the_hook_would_tell(tmp_path: Path) -> None:
    code = "import collections, pickle; pickle.loads(pickle.dumps(collections.OrderedDict()))"
    environment = {**os.environ, "PYTHONPATH": str(hooked(tmp_path)), "UNPICKLED": str(tmp_path / "unpickled")}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    assert "OrderedDict" in (tmp_path / "unpickled").read_text()
