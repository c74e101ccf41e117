"""Real processes that come together through the proxy."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from swarmstep.comm.process_groups import serve_store
from swarmstep.comm.secure.proxy import Proxy

pytestmark = pytest.mark.usefixtures("forked")

SECRET = b"correct horse battery staple"


LIMIT = 60.0  # seconds; a hang, not a measurement


JOINS = """
import os
import torch
from swarmstep import DistComm
from swarmstep.comm.secure.tunnel import open_tunnel
from swarmstep.comm.secure.auth import prove, secret_of

secret = secret_of(os.environ)
host, port = os.environ["PROXY"].split(":")
tunnel = open_tunnel((host, int(port)), secret)
os.environ.update(MASTER_ADDR=tunnel.host, MASTER_PORT=str(tunnel.port))
comm = DistComm.from_env("gloo", patience=60)
prove(comm, secret)
mean, weight = comm.mean(torch.tensor([float(comm.rank)]))
print(mean.item(), weight, comm.split(comm.rank % 2).size)
comm.close()
tunnel.close()
"""


@pytest.fixture
def store() -> Iterator[int]:
    """The port of a real store in this process."""
    store, port = serve_store()
    yield port
    del store


@pytest.fixture
def proxy(store: int) -> Iterator[Proxy]:
    with contextlib.closing(Proxy(store, SECRET)) as proxy:
        yield proxy


def test_a_group_comes_together_through_the_proxy(proxy: Proxy, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.touch(0o600)
    secret.write_bytes(SECRET + b"\n")
    shared = {"PROXY": f"{proxy.host}:{proxy.port}", "SWARMSTEP_SECRET_FILE": str(secret), "WORLD_SIZE": "2"}
    shared |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "GLOO_SOCKET_IFNAME": "lo"}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", JOINS],
            env=os.environ | shared | {"RANK": str(rank)},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    try:
        outcomes = [worker.communicate(timeout=LIMIT) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    assert outcomes == [("0.5 2.0 1\n", "")] * 2
    assert proxy.refused == 0
