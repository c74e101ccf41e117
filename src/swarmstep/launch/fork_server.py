"""A process that has imported everything and forks workers on request, so that a worker starts in milliseconds.

It has one thread, computes nothing, and holds nothing that a worker could inherit but modules. It is spoken to in
lines of JSON, and ends with whoever started it, however that ends; its workers end with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

from swarmstep.errors import CommError, RunOver, SwarmstepError

PRELOADED_MODULES = (
    "torch._dynamo",  # which the first step of an optimizer imports, in more than a second
    "torch.distributed",
    "safetensors.torch",
    "swarmstep.cli.app",
    "swarmstep.train.session",
    "swarmstep.cli.chaos",
    "swarmstep.cli.compare",
    "swarmstep.cli.bench",
    "swarmstep.cli.report",
)
PR_SET_PDEATHSIG = 1
SIGNALS = (signal.SIGINT, signal.SIGTERM)
LIMIT = 60.0  # seconds for an answer: imports take seconds, a fork milliseconds


@dataclasses.dataclass(frozen=True)
class ProcessSpec:
    """What a forked process is to be.

    Args:
        program: a module to run as ``python -m`` does, or a file that ends in ``.py``.
        arguments: of its command line.
        environment: all of it.
        stdout: a file to write to (None: where the preloaded process writes).
        stderr: the same.
        namespace: the network namespace to enter first (None: that of the preloaded process).
    """

    program: str
    arguments: list[str]
    environment: dict[str, str]
    stdout: str | None = None
    stderr: str | None = None
    namespace: str | None = None


class ForkServer:
    """The preloaded process, for the one that starts it; a context manager, at whose end all its workers are gone.

    Args:
        environment: what OMP_NUM_THREADS and the like are while it imports.

    Raises:
        CommError: it could not be started, or has ended.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self._buffer = b""
        self._ended: list[tuple[int, int]] = []

    def __enter__(self) -> ForkServer:
        self._channel, theirs = socket.socketpair()
        # It inherits the mask, and its workers do: an interrupt waits until they are ready for it.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno()), *PRELOADED_MODULES],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            theirs.close()
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
        """The process id of the preloaded process: the parent of all workers."""
        return self._process.pid

    def start(self, job: ProcessSpec) -> int:
        """Start a worker, in a session of its own, with interrupts blocked; return its process id.

        Raises:
            CommError: it could not be started.
        """
        self._send(dataclasses.asdict(job))
        answer = self._answer("pid", "error")
        if "error" in answer:
            raise CommError(f"a worker could not be started: {answer['error']}; free memory or raise the limit")
        return answer["pid"]

    def send_signal(self, pid: int, number: int) -> None:
        """Send a signal to a worker; nothing if it has ended, even where another process has that id by now."""
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
            raise self._gone() from None

    def _answer(self, *kinds: str) -> dict[str, Any]:
        """Return the next message that is no news of a worker's end."""
        deadline = time.monotonic() + LIMIT
        while time.monotonic() < deadline:
            if select.select([self._channel], [], [], 1.0)[0]:
                for message in self._receive():
                    if any(kind in message for kind in kinds):
                        return message
        raise CommError(
            f"the preloaded process gave no answer for {LIMIT:g} s; end it (pid {self.pid}), try again"
        )

    def _receive(self) -> list[dict[str, Any]]:
        """Take in what has come; return the messages that are no news of a worker's end."""
        try:
            data = self._channel.recv(1 << 16)
        except OSError:
            data = b""
        if not data:
            raise self._gone()
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        messages = [json.loads(line) for line in lines]
        self._ended += [(message["ended"], message["code"]) for message in messages if "ended" in message]
        return [message for message in messages if "ended" not in message]

    def _gone(self) -> CommError:
        return CommError(
            "the preloaded process, from which workers are started, has ended, and the workers with it; look for "
            "a lack of memory, then go on with --resume DIR"
        )


class _Server:
    """The other end."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._workers: set[int] = set()
        self._woken, wake = socket.socketpair()
        self._wake = wake
        wake.setblocking(False)
        signal.set_wakeup_fd(wake.fileno())
        signal.signal(signal.SIGCHLD, lambda *_: None)  # wakes `select` up

    def serve(self) -> ProcessSpec | None:
        """Fork on request until nobody is at the other end; return in each worker what it is to be."""
        buffer = b""
        self._send({"ready": True})
        while True:
            readable = select.select([self._channel, self._woken], [], [])[0]
            if self._woken in readable:
                self._woken.recv(4096)
                self._reap()
            if self._channel not in readable:
                continue
            data = self._channel.recv(1 << 16)
            if not data:
                self._end()
                return None
            *lines, buffer = (buffer + data).split(b"\n")
            jobs = (self._obey(json.loads(line)) for line in lines)
            if job := next((job for job in jobs if job), None):
                return job

    def _obey(self, message: dict[str, Any]) -> ProcessSpec | None:
        if "signal" not in message:
            return ProcessSpec(**message) if self._forked() else None
        if message["to"] in self._workers:
            os.kill(message["to"], message["signal"])
        return None

    def _forked(self) -> bool:
        """Fork; return True in the new process."""
        parent = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            self._send({"error": error.strerror})
            return False
        if pid:
            self._workers.add(pid)
            self._send({"pid": pid})
            return False
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for end in (self._channel, self._woken, self._wake):
            end.close()
        _end_with(parent)
        return True

    def _reap(self) -> None:
        for pid in [*self._workers]:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                self._workers.remove(pid)
                self._send({"ended": pid, "code": os.waitstatus_to_exitcode(status)})

    def _end(self) -> None:
        for pid in self._workers:
            os.kill(pid, signal.SIGKILL)
        for pid in self._workers:
            os.waitpid(pid, 0)

    def _send(self, message: Mapping[str, Any]) -> None:
        with contextlib.suppress(OSError):  # nobody is there any more, which `serve` is about to notice
            self._channel.sendall(json.dumps(message).encode() + b"\n")


def _end_with(parent: int) -> None:
    """Let the kernel end this process when its parent ends, where it can."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def _become(job: ProcessSpec) -> None:
    """Make this process, just forked, one that was started for the job."""
    os.setsid()
    for number, path in ((1, job.stdout), (2, job.stderr)):
        if path:
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            os.dup2(file, number)
            os.close(file)
    if job.namespace:
        from swarmstep.launch import namespace

        namespace.enter(job.namespace)
    os.environ.clear()
    os.environ.update(job.environment)
    sys.argv = [job.program, *job.arguments]


def _run_theirs(program: str) -> None:
    """Run a program of the user's; what it does not catch of swarmstep's errors is said in one line."""
    try:
        runpy.run_path(program, run_name="__main__")
    except RunOver:  # the others need this worker no more
        pass
    except SwarmstepError as error:
        print(f"swarmstep: {error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)


def main() -> None:
    """Be the preloaded process, or in the end a worker; arguments: the file of the channel, and modules."""
    channel, *modules = sys.argv[1:]
    for name in modules:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # workers share these pages
    job = _Server(socket.socket(fileno=int(channel))).serve()
    if job is None:
        return
    _become(job)
    if job.program.endswith(".py"):
        _run_theirs(job.program)
    else:
        runpy.run_module(job.program, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
