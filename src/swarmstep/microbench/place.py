"""Where the workers of a benchmark run: on the loopback interface, or on a real slow network of namespaces."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Generator
from pathlib import Path
from typing import NamedTuple

from swarmstep.launch.processes import Place
from swarmstep.network.link import SPEC, parse

ETHERNET, IP, TCP = 14, 20, 32  # bytes of a packet's headers; TCP's with time stamps


def add_link(parser: argparse.ArgumentParser) -> None:
    """Add --link."""
    parser.add_argument("--link", metavar="SPEC", help="run each worker in a network namespace of its own, on a "
        f"link {SPEC.replace('%', '%%')} (Linux, as root; default: all on the loopback interface)")  # fmt: skip


@contextlib.contextmanager
def placed(link: str | None, workers: int) -> Generator[tuple[Place, float]]:
    """Yield where the workers run, and the rate of their links in bits a second (0: no limit).

    Raises:
        UsageError: `link` describes none, or namespaces cannot be made here.
    """
    if link is None:
        yield Place(), 0.0
        return
    from swarmstep.network.namespaces import Network

    with Network(workers, parse(link)) as network:
        yield network.place(), network.link.rate


class Carried(NamedTuple):
    """What this worker's interface has sent so far."""

    packets: int
    octets: int

    def payload_since(self, earlier: Carried) -> int:
        """Return the bytes sent since then, without the headers of the packets."""
        headers = (ETHERNET + IP + TCP) * (self.packets - earlier.packets)
        return self.octets - earlier.octets - headers


def carried() -> Carried:
    """Return what the interface of this worker's namespace has sent."""
    from swarmstep.network.namespaces import INTERFACE

    counts = Path(f"/sys/class/net/{INTERFACE}/statistics")
    packets, octets = (int((counts / name).read_text()) for name in ("tx_packets", "tx_bytes"))
    return Carried(packets, octets)
