"""Background tasks: each belongs to the registry that started it; none is left when the program ends."""

from __future__ import annotations

import atexit
import contextvars
import threading
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from swarmstep.waiting import Wait

T = TypeVar("T")

LAST_WAIT = 10.0  # seconds that `settle` waits, and the program's end


class Pending(ABC, Generic[T]):
    """The result of a task that may still be running."""

    @abstractmethod
    def result(self) -> T:
        """Wait for the task; return what it returned, or raise what it raised. May be called again."""


class Done(Pending[T]):
    """The result of a task, which runs while this object is made."""

    def __init__(self, task: Callable[[], T]) -> None:
        self._returned: list[T] = []
        self._error: Exception | None = None
        try:
            self._returned.append(task())
        except Exception as error:
            self._error = error

    def result(self) -> T:
        if self._error:
            raise self._error
        return self._returned[0]


class BackgroundTask(Pending[T]):
    """A task in a thread of its own, which does not keep the program from ending; made by `TaskRegistry.start`.

    Args:
        task: what to run.
        registry: that it belongs to, which lives as long as the task runs.
        after: a task to wait for first (None: none).
    """

    def __init__(self, task: Callable[[], T], registry: TaskRegistry, after: BackgroundTask[Any] | None) -> None:
        self._task = task
        self._registry = registry
        self._after = after
        self._returned: list[T] = []
        self._error: BaseException | None = None
        context = contextvars.copy_context()  # fault points reach the hook of whoever starts the task
        self._thread = threading.Thread(
            target=context.run, args=(self._run,), name="swarmstep-background", daemon=True
        )
        registry.running.add(self)
        self._thread.start()

    def _run(self) -> None:
        try:
            if self._after:
                self._after.wait()
                self._after = None
            self._returned.append(self._task())
        except BaseException as error:
            self._error = error
        self._registry.running.discard(self)

    def wait(self, seconds: float | None = None) -> None:
        """Wait until the task has ended, successfully or not, at most so many seconds (None: no limit)."""
        self._thread.join(seconds if seconds is None else max(0.0, seconds))

    @property
    def done(self) -> bool:
        """Whether the task has ended, successfully or not."""
        return not self._thread.is_alive()

    def result(self) -> T:
        with Wait("a task in the background"):
            self.wait()
        if self._error:
            raise self._error
        return self._returned[0]


class TaskRegistry:
    """The background tasks of one owner, such as a group or a checkpoint writer; `running` are the unfinished."""

    def __init__(self) -> None:
        self.running: set[BackgroundTask[Any]] = set()
        _registries.add(self)

    def start(self, task: Callable[[], T], after: BackgroundTask[Any] | None = None) -> BackgroundTask[T]:
        """Start a task in the background.

        Args:
            task: what to run.
            after: a task that must have ended before this one begins.
        """
        return BackgroundTask(task, self, after)

    def settle(self, deadline: float | None = None) -> None:
        """Wait until all tasks have ended.

        Args:
            deadline: until when, by `time.monotonic` (default: `LAST_WAIT` seconds from now).
        """
        deadline = time.monotonic() + LAST_WAIT if deadline is None else deadline
        with Wait("tasks in the background to end"):
            for task in list(self.running):
                task.wait(deadline - time.monotonic())


class TaskQueue:
    """Tasks of a registry that run one after another, in the order in which they were started."""

    def __init__(self, registry: TaskRegistry) -> None:
        self.registry = registry
        self._last: BackgroundTask[Any] | None = None

    def start(self, task: Callable[[], T]) -> BackgroundTask[T]:
        """Start a task in the background; it begins when the one before has ended."""
        started = self._last = self.registry.start(task, self._last)
        return started


_registries: weakref.WeakSet[TaskRegistry] = weakref.WeakSet()


def _settle_all() -> None:
    """Let all tasks end: torch aborts a program that ends while a thread is inside a collective."""
    deadline = time.monotonic() + LAST_WAIT
    for registry in list(_registries):
        registry.settle(deadline)


atexit.register(_settle_all)
