"""The fork server's own process: ``python -m swarmstep.launch.fork_server_process SOCKET MODULES``.

It has one thread, computes nothing, and holds nothing that a worker could inherit but modules. It receives
requests as lines of JSON; when the process that started it ends, it kills its workers and ends, too.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
from collections.abc import Mapping
from typing import Any

from swarmstep import waiting
from swarmstep.errors import RunOver, SwarmstepError
from swarmstep.launch.fork_server import ProcessSpec
from swarmstep.launch.interpreter import run_from

PR_SET_PDEATHSIG = 1


class _Server:
    """Forks on request, and reports the workers that end."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._workers: set[int] = set()
        self._woken, self._wake = socket.socketpair()
        self._wake.setblocking(False)
        signal.set_wakeup_fd(self._wake.fileno())
        signal.signal(signal.SIGCHLD, lambda *_: None)  # wakes up `select`

    def serve(self) -> ProcessSpec | None:
        """Serve until the other end of the channel is closed; return, in each worker, what it is to run."""
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
            specs = (self._handle(json.loads(line)) for line in lines)
            if spec := next((spec for spec in specs if spec), None):
                return spec

    def _handle(self, message: dict[str, Any]) -> ProcessSpec | None:
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
        with contextlib.suppress(OSError):  # the other end is closed, as `serve` is about to notice
            self._channel.sendall(json.dumps(message).encode() + b"\n")


def _end_with(parent: int) -> None:
    """Have the kernel end this process when its parent ends, where it can."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def _set_up(spec: ProcessSpec) -> None:
    """Give this process, just forked, the session, files, namespace, environment and arguments of its own."""
    os.setsid()
    for number, path in ((1, spec.stdout), (2, spec.stderr)):
        if path:
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            os.dup2(file, number)
            os.close(file)
    if spec.namespace:
        from swarmstep.launch import enter_namespace

        enter_namespace.enter(spec.namespace)
    os.environ.clear()
    os.environ.update(spec.environment)
    if says := spec.environment.get("SWARMSTEP_SAYS"):
        waiting.report(says.removesuffix(".says"))
    sys.argv = [spec.program, *spec.arguments]


def _run_file(program: str) -> None:
    """Run a program of the user's; report an error of swarmstep that it does not catch in one line."""
    run_from(os.path.dirname(os.path.realpath(program)))
    try:
        runpy.run_path(program, run_name="__main__")
    except RunOver:  # the others do not need this worker any more
        pass
    except SwarmstepError as error:
        print(f"swarmstep: {error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)


def main() -> None:
    """Be the fork server and, after a fork, a worker; arguments: the socket's file descriptor, then modules."""
    faulthandler.register(waiting.STACKS, 2)  # also for a worker that cannot do more yet
    descriptor, *modules = sys.argv[1:]
    for name in modules:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # workers share these pages
    spec = _Server(socket.socket(fileno=int(descriptor))).serve()
    if spec is None:
        return
    _set_up(spec)
    if spec.program.endswith(".py"):
        _run_file(spec.program)
    else:
        runpy.run_module(spec.program, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
