"""Groups whose members are named by a torchft lighthouse: a process that receives heartbeats from all machines.

The lighthouse answers one question: who is in the next group (its quorum: all that it receives heartbeats from,
once they have all asked). Votes, and the rendezvous of a group, stay on the store, which no worker serves: a
torchft replica has a store of its own, and what dies with a worker cannot decide for the others.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import os
import threading
import time
from collections.abc import Generator
from datetime import timedelta
from typing import Any

from swarmstep.comm.store import Address
from swarmstep.elastic.membership import Membership
from swarmstep.elastic.store_link import PERIOD
from swarmstep.errors import CommError, UsageError

ADDRESS = "TORCHFT_LIGHTHOUSE"  # the environment variable that torchft's own tools read
HEARTBEAT_TIMEOUT = 1.0  # seconds without a heartbeat after which a lighthouse of ours gives up on a worker
CONNECT_TIMEOUT = 2.0  # seconds to reach the lighthouse: fewer than a successful start of a worker takes
ASK_TIMEOUT = 0.5  # seconds for one question; then the store is looked at again


@contextlib.contextmanager
def serve_lighthouse(patience: float, *, alone: bool = True) -> Generator[str]:
    """Serve a lighthouse on the loopback interface, unless TORCHFT_LIGHTHOUSE names one; yield its address.

    Args:
        patience: seconds that it waits for a worker that sends heartbeats.
        alone: whether all workers are on this machine.

    Raises:
        UsageError: torchft is not installed, or the workers of other machines need a lighthouse that they can
        reach.
    """
    coordination = _coordination()
    if os.environ.get(ADDRESS):
        yield os.environ[ADDRESS]
        return
    if not alone:
        raise UsageError(
            f"--elastic torchft across machines: expected {ADDRESS}=http://HOST:PORT of a lighthouse that all of "
            "them can reach; start one (torchft_lighthouse --min_replicas 1)"
        )
    server = coordination.LighthouseServer(
        bind="127.0.0.1:0",
        min_replicas=1,
        join_timeout_ms=round(1000 * patience),
        heartbeat_timeout_ms=round(1000 * HEARTBEAT_TIMEOUT),
    )
    try:
        yield f"http://127.0.0.1:{server.address().rpartition(':')[2]}"  # its own answer holds the host name
    finally:
        server.shutdown()


class LighthouseMembership(Membership):
    """A `Membership` that admits to the next group only those whom the lighthouse names.

    A member is given up once both agree: the lighthouse receives no heartbeats from it, and by the store it is
    lost. The lighthouse is needed only while a group forms, and may then be away for up to `silence` seconds.

    Args:
        address: as of a `Membership`.
        name: as of a `Membership`.
        lighthouse: its address, http://HOST:PORT (None: TORCHFT_LIGHTHOUSE in the environment); it must serve no
            other run meanwhile.
        options: as of a `Membership`.

    Raises:
        CommError: the lighthouse or the store cannot be reached. `join` and `renew` raise it, too.
        UsageError: torchft is not installed.
    """

    def __init__(self, address: Address, name: str, lighthouse: str | None = None, **options: Any) -> None:
        self._lighthouse = Lighthouse(lighthouse or os.environ[ADDRESS], name)
        super().__init__(address, name, **options)

    def _admitted(self) -> set[str]:
        return self._lighthouse.ask(self.silence)

    def leave(self) -> None:
        self._lighthouse.stop()
        super().leave()


class Lighthouse:
    """One worker's connection to a lighthouse; sends heartbeats in a thread of its own.

    Args:
        address: of the lighthouse, http://HOST:PORT.
        worker: its name.

    Raises:
        CommError: it cannot be reached within CONNECT_TIMEOUT seconds.
        UsageError: torchft is not installed.
    """

    def __init__(self, address: str, worker: str) -> None:
        self._address, self._worker = address, worker
        try:
            self._client = _coordination().LighthouseClient(address, timedelta(seconds=CONNECT_TIMEOUT))
        except RuntimeError as error:
            raise self._unreachable(str(error).rpartition(": ")[2]) from error
        self._failing_since: float | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="swarmstep-lighthouse", daemon=True)
        self._thread.start()
        atexit.register(self.stop)  # as for a Heartbeat

    def _beat(self) -> None:
        while not self._stop.wait(PERIOD):
            try:
                self._client.heartbeat(self._worker, timeout=timedelta(seconds=ASK_TIMEOUT))
                self._failing_since = None
            except (RuntimeError, TimeoutError):
                self._failing_since = self._failing_since or time.monotonic()

    def ask(self, silence: float) -> set[str]:
        """Return the names of those who should be in the next group; none yet, if others may still ask.

        Raises:
            CommError: no heartbeat was answered for `silence` seconds.
        """
        failing = self._failing_since
        if failing and time.monotonic() - failing > silence:
            raise self._unreachable(f"no answer for {silence:g} s")
        try:
            quorum = self._client.quorum(self._worker, timeout=timedelta(seconds=ASK_TIMEOUT))
        except (RuntimeError, TimeoutError):  # a worker has not asked yet, or `_beat` gets no answer either
            return set()
        return {member.replica_id for member in quorum.participants}

    def _unreachable(self, why: str) -> CommError:
        return CommError(
            f"worker {self._worker}: the lighthouse at {self._address} cannot be reached ({why}); start one there "
            f"(torchft_lighthouse --min_replicas 1), or set {ADDRESS} to where it is"
        )

    def stop(self) -> None:
        """Stop sending heartbeats; the lighthouse will forget this worker."""
        self._stop.set()
        self._thread.join(2 * ASK_TIMEOUT)


def _coordination() -> Any:
    """Return the module torchft.coordination."""
    os.environ.setdefault("RUST_LOG", "error")  # else it reports each quorum
    try:
        return importlib.import_module("torchft.coordination")
    except ImportError as error:
        raise UsageError(
            f"--elastic torchft: expected torchft to be installed, but it cannot be imported ({error}); "
            "pip install torchft, or use --elastic local"
        ) from error
