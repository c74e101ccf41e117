"""Processes that run simulated cells in parallel; if one dies its cell fails, and the process is replaced."""

from __future__ import annotations

import dataclasses
import json
import os
import queue
import signal
import subprocess
import threading
from types import TracebackType

from swarmstep.compare import cells
from swarmstep.compare.plan import Task
from swarmstep.compare.results import Cell, from_json
from swarmstep.errors import SwarmstepError
from swarmstep.launch.interpreter import module_command
from swarmstep.launch.stopping import blocked


class Pool:
    """A context manager; on exit, cells that still run are stopped.

    Args:
        jobs: number of processes.
    """

    def __init__(self, jobs: int) -> None:
        self._tasks: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[tuple[Task, Cell]] = queue.SimpleQueue()
        self._processes: list[subprocess.Popen[str]] = []
        self._closed = False
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._serve, daemon=True) for _ in range(jobs)]

    def __enter__(self) -> Pool:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._closed = True
        for process in self._processes:
            process.kill()
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join()

    def put(self, task: Task) -> None:
        """Add a task to the queue; tasks start in this order."""
        self._tasks.put(task)

    def get(self, timeout: float) -> tuple[Task, Cell] | None:
        """Return a finished task and its cell; None if there is none within `timeout` seconds."""
        try:
            return self._done.get(timeout=timeout)
        except queue.Empty:
            return None

    def _serve(self) -> None:
        """Run tasks in a process that this thread owns."""
        process: subprocess.Popen[str] | None = None
        while (task := self._tasks.get()) is not None and not self._closed:
            try:
                process = process or self._start()
                cell = _run(process, task) if process else None
                if process and cell is None:
                    reason = f"the process that ran it {_exit_of(process)}"
                    cell, process = cells.failed(task, reason), None
            except (OSError, SwarmstepError) as error:  # the process did not start, or its answer is malformed
                cell = cells.failed(task, str(error))
            if cell:
                self._done.put((task, cell))
        if process:
            process.kill()
            process.communicate()

    def _start(self) -> subprocess.Popen[str] | None:
        with self._lock:
            if self._closed:
                return None
            with blocked():  # this process decides when to stop
                process = subprocess.Popen(
                    module_command("swarmstep.compare.pool_worker"),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    env={**os.environ, "OMP_NUM_THREADS": "1", "SWARMSTEP_LAUNCHER": str(os.getpid())},
                    start_new_session=True,
                )
            self._processes.append(process)
            return process


def _run(process: subprocess.Popen[str], task: Task) -> Cell | None:
    """Have the process run a task and return the cell; None if the process dies."""
    assert process.stdin
    assert process.stdout
    try:
        process.stdin.write(json.dumps(dataclasses.asdict(task)) + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
    except OSError:
        line = ""
    return from_json(json.loads(line), "the answer of a pool worker") if line.endswith("\n") else None


def _exit_of(process: subprocess.Popen[str]) -> str:
    """Return how a process ended, such as "was ended by SIGKILL"."""
    process.communicate()
    code = process.returncode
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
