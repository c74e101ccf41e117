"""Where the workers of a benchmark run: on the loopback interface, or on a real slow network of namespaces."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from pathlib import Path
from typing import NamedTuple

from swarmstep.launch.processes import Place
from swarmstep.network.link import parse

ETHERNET, IP, TCP = 14, 20, 32  # bytes of a packet's headers; TCP's with time stamps


@contextlib.contextmanager
def placed(link: str | None, workers: int) -> Generator[tuple[Place, float]]:
    """Yield where the workers run, and the rate of their links in bits a second (0: no limit).

    Raises:
        UsageError: `link` is malformed, or this process cannot create namespaces.
    """
    if link is None:
        yield Place(), 0.0
        return
    from swarmstep.network.namespaces import Network

    with Network(workers, parse(link)) as network:
        yield network.place(), network.link.rate


class InterfaceCounters(NamedTuple):
    """Packets and bytes that this worker's interface has sent so far."""

    packets: int
    bytes: int

    def payload_since(self, earlier: InterfaceCounters) -> int:
        """Return the bytes sent since then, without packet headers."""
        headers = (ETHERNET + IP + TCP) * (self.packets - earlier.packets)
        return self.bytes - earlier.bytes - headers


def interface_counters() -> InterfaceCounters:
    """Return the counters of the interface in this worker's namespace."""
    from swarmstep.network.namespaces import INTERFACE

    statistics = Path(f"/sys/class/net/{INTERFACE}/statistics")
    return InterfaceCounters(*(int((statistics / name).read_text()) for name in ("tx_packets", "tx_bytes")))
