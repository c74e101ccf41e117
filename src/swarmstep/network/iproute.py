"""Runs ``ip`` and ``tc`` of iproute2, without being interrupted halfway."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import threading
from collections.abc import Generator

from swarmstep.errors import CommError
from swarmstep.launch.stopping import SIGNALS


def run(*command: str) -> str:
    """Run a command and return its output.

    Raises:
        CommError: it failed, with its error in one line.
    """
    # A command that an interrupt stops halfway, or leaves running on its own, would leave interfaces behind.
    with signals_deferred():
        done = subprocess.run(command, capture_output=True, text=True, check=False, start_new_session=True)
    if done.returncode:
        reason = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise CommError(f"network: `{' '.join(command)}` failed: {reason}")
    return done.stdout


def run_or_skip(*command: str) -> str:
    """Run a command and return its output; "" if it fails, for example because its object is already gone."""
    try:
        return run(*command)
    except CommError:
        return ""


def bring_up(namespace: str, interface: str, *, is_port: bool) -> None:
    """Bring an interface up.

    A port has no addresses and does not answer ARP. `gso_max_segs 1` has the effect of
    ``ethtool -K gso off tso off``; `addrgenmode none` prevents IPv6 traffic.
    """
    settings = ["gso_max_segs", "1", "addrgenmode", "none", "arp", "off" if is_port else "on", "up"]
    run("ip", "-n", namespace, "link", "set", interface, *settings)


@contextlib.contextmanager
def signals_deferred() -> Generator[None]:
    """Defer interrupts to the end of this block."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signal handlers run in the main thread only
        return
    received: list[int] = []
    previous = {number: signal.signal(number, lambda n, _: received.append(n)) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    for number in received:
        signal.raise_signal(number)
