"""Groups whose members a torchft lighthouse names: one process that hears the workers of all machines.

The lighthouse answers one question: who is in the next group (its quorum: all it hears signs of life from, once
they have all asked). Votes, and the meeting of a group's members, stay on the store that no worker serves: a
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

from swarmstep.elastic.membership import PERIOD, Candidate, Membership
from swarmstep.errors import CommError, UsageError

ADDRESS = "TORCHFT_LIGHTHOUSE"  # the variable in which torchft's own tools look for it
FORGETS = 1.0  # seconds without a sign of life after which a lighthouse served here waits for a worker no more
CONNECTING = 2.0  # seconds to reach the lighthouse: less than what counts as a worker's successful start
ASKING = 0.5  # seconds that one question takes at most: then the store is looked at again


@contextlib.contextmanager
def serve_lighthouse(patience: float, *, alone: bool = True) -> Generator[str]:
    """Serve a lighthouse on the loopback interface, unless TORCHFT_LIGHTHOUSE names one; yield its address.

    Args:
        patience: seconds that it waits for a worker that gives signs of life.
        alone: whether all workers are on this machine.

    Raises:
        UsageError: torchft is not installed, or other machines need a lighthouse that they reach.
    """
    coordination = _coordination()
    if os.environ.get(ADDRESS):
        yield os.environ[ADDRESS]
        return
    if not alone:
        raise UsageError(
            f"--elastic torchft across machines: expected {ADDRESS}=http://HOST:PORT of a lighthouse that all of "
            "them reach; start one (torchft_lighthouse --min_replicas 1)"
        )
    server = coordination.LighthouseServer(
        bind="127.0.0.1:0",
        min_replicas=1,
        join_timeout_ms=round(1000 * patience),
        heartbeat_timeout_ms=round(1000 * FORGETS),
    )
    try:
        yield f"http://127.0.0.1:{server.address().rpartition(':')[2]}"  # it gives the host's name, not its own
    finally:
        server.shutdown()


class LighthouseMembership(Membership):
    """A `Membership` that takes those into the next group whom the lighthouse names, too.

    A member is given up when both say so: the lighthouse hears nothing of it, and by the store it is lost. The
    lighthouse is needed only while a group forms, and may then be away for up to `silence` seconds.

    Args:
        address: as of a `Membership`.
        name: as of a `Membership`.
        lighthouse: its address, http://HOST:PORT (None: TORCHFT_LIGHTHOUSE in the environment); it serves no other
            run meanwhile.
        options: as of a `Membership`.

    Raises:
        CommError: the lighthouse or the store cannot be reached. `join` and `renew` raise it, too.
        UsageError: torchft is not installed.
    """

    def __init__(self, address: tuple[str, int], name: str, lighthouse: str | None = None, **options: Any) -> None:
        self._lighthouse = Lighthouse(lighthouse or os.environ[ADDRESS], name)
        super().__init__(address, name, **options)

    def _candidates(self, number: int) -> list[Candidate]:
        named = self._lighthouse.ask(self.silence)
        return [candidate for candidate in super()._candidates(number) if candidate.name in named]

    def leave(self) -> None:
        """Leave for good; the others, if any are left, go on."""
        self._lighthouse.stop()
        super().leave()


class Lighthouse:
    """One worker's connection to a lighthouse; gives it signs of life in a thread of its own.

    Args:
        address: of the lighthouse, http://HOST:PORT.
        worker: its name.

    Raises:
        CommError: it cannot be reached within CONNECTING seconds.
        UsageError: torchft is not installed.
    """

    def __init__(self, address: str, worker: str) -> None:
        self._address, self._worker = address, worker
        try:
            self._client = _coordination().LighthouseClient(address, timedelta(seconds=CONNECTING))
        except RuntimeError as error:
            raise self._gone(str(error).rpartition(": ")[2]) from error
        self._failing: float | None = None  # since when it does not answer
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="swarmstep-lighthouse", daemon=True)
        self._thread.start()
        atexit.register(self.stop)  # as of a Heartbeat

    def _beat(self) -> None:
        while not self._stop.wait(PERIOD):
            try:
                self._client.heartbeat(self._worker, timeout=timedelta(seconds=ASKING))
                self._failing = None
            except (RuntimeError, TimeoutError):
                self._failing = self._failing or time.monotonic()

    def ask(self, silence: float) -> set[str]:
        """Return the names of those who should be in the next group; nobody yet, if somebody may still ask.

        Raises:
            CommError: there was no answer to any sign of life for `silence` seconds.
        """
        failing = self._failing
        if failing and time.monotonic() - failing > silence:
            raise self._gone(f"no answer for {silence:g} s")
        try:
            quorum = self._client.quorum(self._worker, timeout=timedelta(seconds=ASKING))
        except (RuntimeError, TimeoutError):  # somebody has not asked yet, or it does not answer: the beats tell
            return set()
        return {member.replica_id for member in quorum.participants}

    def _gone(self, why: str) -> CommError:
        return CommError(
            f"worker {self._worker}: the lighthouse at {self._address} cannot be reached ({why}); start one there "
            f"(torchft_lighthouse --min_replicas 1), or set {ADDRESS} to where it is"
        )

    def stop(self) -> None:
        """Give no more signs of life; the lighthouse will forget this worker."""
        self._stop.set()
        self._thread.join(2 * ASKING)


def _coordination() -> Any:
    """Return torchft's module of that name."""
    os.environ.setdefault("RUST_LOG", "error")  # it would report each quorum
    try:
        return importlib.import_module("torchft.coordination")
    except ImportError as error:
        raise UsageError(
            f"--elastic torchft: expected torchft to be installed, found none that can be imported ({error}); "
            "pip install torchft, or take --elastic local"
        ) from error
