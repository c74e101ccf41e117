"""What torch does behind a proxy: its store, a group of real processes, and the end of one of the two sides."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from datetime import timedelta
from queue import Queue

import pytest
from torch.distributed import TCPStore

from swarmstep.comm.process_groups import serve_store
from swarmstep.comm.secure.proxy import Proxy
from swarmstep.comm.secure.tunnel import Tunnel, open_tunnel

SECRET = b"correct horse battery staple"
LIMIT = 60.0  # seconds; a hang, not a measurement


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


@pytest.fixture
def tunnel(proxy: Proxy) -> Iterator[Tunnel]:
    with contextlib.closing(open_tunnel((proxy.host, proxy.port), SECRET, LIMIT)) as tunnel:
        yield tunnel


def client(tunnel: Tunnel, seconds: float = LIMIT) -> TCPStore:
    limit = timedelta(seconds=seconds)
    return TCPStore(tunnel.host, tunnel.port, is_master=False, timeout=limit, wait_for_workers=False)


def test_every_verb_of_a_store_works_through_the_proxy(tunnel: Tunnel, store: int) -> None:
    """The tunnel is a thread of the process that waits for the store: none of them may hold the interpreter."""
    inside, outside = TCPStore("127.0.0.1", store, is_master=False, wait_for_workers=False), client(tunnel)
    outside.set("key", "value")
    assert inside.get("key") == b"value"
    assert outside.add("count", 2) == 2
    assert outside.compare_set("key", "value", "new") == b"new"
    outside.multi_set(["a", "b"], ["1", "2"])
    assert outside.multi_get(["a", "b"]) == [b"1", b"2"]
    outside.wait(["a", "b"], timedelta(seconds=LIMIT))
    assert outside.check(["a"])
    assert not outside.check(["none"])
    assert outside.delete_key("a")
    outside.append("b", "3")
    assert outside.get("b") == b"23"
    assert outside.num_keys() == inside.num_keys()
    big = os.urandom(3_000_000).hex()
    outside.set("big", big)
    assert inside.get("big").decode() == big == outside.get("big").decode()
    with pytest.raises(RuntimeError):
        outside.wait(["none"], timedelta(seconds=0.1))
    assert outside.clone().get("key") == b"new"
    assert tunnel.error is None


def waiting(outside: TCPStore) -> tuple[threading.Thread, Queue[BaseException]]:
    """Wait for a key that nobody sets; return what raises in the queue."""
    raised: Queue[BaseException] = Queue()

    def run() -> None:
        try:
            outside.set("waits", "now")
            outside.wait(["never"], timedelta(seconds=2 * LIMIT))
        except RuntimeError as error:
            raised.put(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, raised


def lost(tunnel: Tunnel, proxy: Proxy) -> bool:
    """Whether the tunnel says that the proxy is gone; what it had not read yet turns the end into a reset."""
    ends = "closed the connection", "is lost: Connection "  # reset by peer; or lost, as asyncio has it
    return any(f"the proxy at 127.0.0.1:{proxy.port} {end}" in str(tunnel.error) for end in ends)


@pytest.mark.parametrize("end", ["proxy", "tunnel"])
def test_who_waits_for_a_lost_store_hears_of_it(tunnel: Tunnel, proxy: Proxy, store: int, end: str) -> None:
    thread, raised = waiting(client(tunnel))
    inside = TCPStore("127.0.0.1", store, is_master=False, wait_for_workers=False)
    inside.wait(["waits"], timedelta(seconds=LIMIT))
    {"proxy": proxy, "tunnel": tunnel}[end].close()
    assert isinstance(raised.get(timeout=LIMIT), RuntimeError)
    thread.join(LIMIT)
    assert not thread.is_alive()
    tunnel.close()
    assert end == "tunnel" or lost(tunnel, proxy)


def test_a_proxy_without_a_store_closes_the_connection() -> None:
    with (
        contextlib.closing(Proxy(1, SECRET)) as proxy,  # nobody listens on port 1
        contextlib.closing(open_tunnel((proxy.host, proxy.port), SECRET, LIMIT)) as tunnel,
    ):
        with pytest.raises(RuntimeError):
            client(tunnel, 1.0)
        assert lost(tunnel, proxy)
