"""By which of its network interfaces, and at which address, this machine is reached."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
import sys

from swarmstep.comm.process_groups import LOOPBACK
from swarmstep.comm.secure.auth import is_loopback
from swarmstep.errors import UsageError

SIOCGIFADDR = 0x8915  # the request for an interface's address


def interface_towards(host: str) -> str:
    """Return the name of the network interface through which this machine, or another, has to reach `host`.

    GLOO_SOCKET_IFNAME counts, where it is set; else it is the interface with the address from which this machine
    sends to `host`.

    Raises:
        UsageError: there is no way to `host`, or no such interface is found, or GLOO_SOCKET_IFNAME is loopback.
    """
    given = os.environ.get("GLOO_SOCKET_IFNAME")
    if given == LOOPBACK and not is_loopback(host):
        raise UsageError(f"GLOO_SOCKET_IFNAME={given}: no other machine gets there; unset it, or name another one")
    if given:
        return given
    try:
        family, kind, _, _, target = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(target)  # sends nothing
            own = probe.getsockname()[0]
    except OSError as error:
        raise UsageError(f"{host}: {error.strerror}; expected an address that this machine can reach") from None
    found = next((name for _, name in socket.if_nameindex() if address_of(name) == own), None)
    if not found:
        raise UsageError(f"no network interface has the address {own}: set GLOO_SOCKET_IFNAME to the name of one")
    return found


def own_address(host: str) -> str:
    """Return the address by which peers reach this process.

    It is that of the interface GLOO_SOCKET_IFNAME, if it is set and known, else that from which this process sends
    to `host`.

    Raises:
        OSError: there is no way to `host`.
    """
    interface = os.environ.get("GLOO_SOCKET_IFNAME", "").partition(",")[0]
    if interface and (address := address_of(interface)):
        return address
    family, kind, _, _, target = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(target)  # sends nothing
        return probe.getsockname()[0]


def address_of(interface: str) -> str | None:
    """Return the first IPv4 address of a network interface; None without, and where Linux is not there to ask."""
    if not sys.platform.startswith("linux"):
        return None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking, contextlib.suppress(OSError):
        answer = fcntl.ioctl(asking, SIOCGIFADDR, struct.pack("256s", interface.encode()[:15]))
        return socket.inet_ntoa(answer[20:24])
    return None
