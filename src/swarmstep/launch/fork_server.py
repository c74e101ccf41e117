"""The fork server: a process that has imported everything and forks workers on request, each within milliseconds.

This is its handle, for the process that starts it; `fork_server_process` is the server itself. Why not the fork
server of `multiprocessing`: docs/decisions/013-fork-server.md.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import select
import socket
import subprocess
import time
from collections.abc import Mapping
from typing import Any

from swarmstep.errors import CommError
from swarmstep.launch.interpreter import module_command
from swarmstep.launch.stopping import blocked

PRELOADED_MODULES = (
    "torch._dynamo",  # which an optimizer's first step imports, in more than a second
    "torch.distributed",
    "safetensors.torch",
    "swarmstep.cli.preload",
    "swarmstep.train.session",
    "swarmstep.chaos.trial",
    "swarmstep.compare.comparison",
    "swarmstep.microbench.workers",
    "swarmstep.report",
)
LIMIT = 300.0  # seconds for a fork, which takes milliseconds, and minutes where 50 processes share 2 cores


@dataclasses.dataclass(frozen=True)
class ProcessSpec:
    """What a forked process is to run.

    Args:
        program: a module to run as ``python -m`` does, or a file that ends in ``.py``.
        arguments: of its command line.
        environment: all of it.
        stdout: a file to write to (None: where the fork server writes).
        stderr: the same.
        namespace: the network namespace to enter first (None: that of the fork server).
    """

    program: str
    arguments: list[str]
    environment: dict[str, str]
    stdout: str | None = None
    stderr: str | None = None
    namespace: str | None = None


class ForkServer:
    """A context manager that starts the fork server; at the end of the block the server and its workers are gone.

    Server and workers also end when this process does, however that ends.

    Args:
        environment: of the server while it imports (OMP_NUM_THREADS and the like).

    Raises:
        CommError: it could not be started, or has ended.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self._buffer = b""
        self._ended: list[tuple[int, int]] = []

    def __enter__(self) -> ForkServer:
        self._channel, server_end = socket.socketpair()
        command = module_command("swarmstep.launch.fork_server_process")
        with server_end, blocked():  # the server inherits that, and so do its workers
            self._process = subprocess.Popen(
                [*command, str(server_end.fileno()), *PRELOADED_MODULES],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                pass_fds=[server_end.fileno()],
                start_new_session=True,
            )
        try:
            self._answer("ready")
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._close()

    def _close(self) -> None:
        self._channel.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10.0)
        self._process.kill()
        self._process.wait()

    @property
    def pid(self) -> int:
        """The process id of the fork server: the parent of all workers."""
        return self._process.pid

    def start(self, spec: ProcessSpec) -> int:
        """Start a worker, in a session of its own, with interrupts blocked; return its process id.

        Raises:
            CommError: it could not be started.
        """
        self._send(dataclasses.asdict(spec))
        answer = self._answer("pid", "error")
        if "error" in answer:
            raise CommError(f"a worker could not be started: {answer['error']}; free memory or raise the limit")
        return answer["pid"]

    def send_signal(self, pid: int, number: int) -> None:
        """Send a signal to a worker; does nothing if it has ended, even if another process has that id by now."""
        self._send({"signal": number, "to": pid})

    def ended(self, seconds: float) -> list[tuple[int, int]]:
        """Wait at most `seconds` for workers to end; return (pid, exit code or -signal) of those that did."""
        if not self._ended and select.select([self._channel], [], [], max(0.0, seconds))[0]:
            self._receive()
        ended, self._ended = self._ended, []
        return ended

    def _send(self, message: Mapping[str, Any]) -> None:
        try:
            self._channel.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            raise self._lost() from None

    def _answer(self, *kinds: str) -> dict[str, Any]:
        """Return the next message that has one of these keys."""
        deadline = time.monotonic() + LIMIT
        while time.monotonic() < deadline:
            if select.select([self._channel], [], [], 1.0)[0]:
                for message in self._receive():
                    if any(kind in message for kind in kinds):
                        return message
        raise CommError(f"the fork server did not answer within {LIMIT:g} s; end it (pid {self.pid}), try again")

    def _receive(self) -> list[dict[str, Any]]:
        """Receive messages; note the workers that have ended, and return the other messages."""
        try:
            data = self._channel.recv(1 << 16)
        except OSError:
            data = b""
        if not data:
            raise self._lost()
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        messages = [json.loads(line) for line in lines]
        self._ended += [(message["ended"], message["code"]) for message in messages if "ended" in message]
        return [message for message in messages if "ended" not in message]

    def _lost(self) -> CommError:
        return CommError(
            "the fork server, which starts the workers, has ended, and the workers with it; check for a lack of "
            "memory, then go on with --resume DIR"
        )
