"""The server as a real process: it outlives its workers, and goes on from its checkpoint if it is killed."""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from swarmstep import fault_points
from swarmstep.asynchronous.contract import SERVER, Message, Method
from swarmstep.asynchronous.links import JOINED, Change, Links, name_of
from swarmstep.asynchronous.nodes import LEFT, MESSAGE, STEP, TIMER, Box, Countdown, Event
from swarmstep.checkpoint.fields import field, same
from swarmstep.checkpoint.file import content_of, unwritable, write
from swarmstep.checkpoint.folder import path_of, remove_step, steps_in
from swarmstep.checkpoint.loader import load_any
from swarmstep.errors import CheckpointError, PeerLost, UsageError

OVER = "over"  # the server has all results; see `Links.mark`
KEPT = 2  # checkpoints
Listen = Callable[[Any, int, float], bool]


class Served(NamedTuple):
    """What a server has done.

    Args:
        state: of the server, at the end.
        order: the events that led to it, their times in seconds since the start: `replay` leads to the same state.
    """

    state: Any
    order: list[Event]


def run_server(
    method: Method[Any],
    x: Tensor,
    box: Links,
    results: int,
    *,
    folder: Path | None = None,
    every: int = 100,
    listen: Listen = lambda state, taken, seconds: False,
) -> Served:
    """Be the server until `results` results have come, from whoever has one. The workers call `run_worker`.

    At the start it waits for all workers, at most the patience of `box`, and begins with those that have come.
    From then on workers may come and go at any time. With a folder, the same call in a new process goes on from
    the newest checkpoint there: what came after it does not count.

    Args:
        method: with a server, in which a worker does its jobs in the order in which they came, one result each.
        x: the start [P], on the CPU.
        box: this process's; leave its `with` block afterwards. Results that come later do not count.
        results: how many, at least 1, those before a checkpoint included.
        folder: for checkpoints, the last KEPT of which stay (None: the end of this process is the end of the run).
        every: results between two checkpoints, at least 1; each holds the order so far, too.
        listen: called after each result with the server's state, to be looked at only, the number of results and
            the seconds since the start; where it returns true the server saves and ends.

    Raises:
        UsageError: an argument is out of its range.
        PeerLost: nothing came within the patience of `box`.
        CheckpointError: the folder cannot be used, at the start or the end, or is of a run with other settings; or
            workers have had jobs of a server before this one, and there is no checkpoint.
        CommError: the store cannot be reached, or another server has taken this one's place.
    """
    if not method.has_server or box.node != SERVER or results < 1 or every < 1:
        raise UsageError(
            f"run_server: expected a method with a server, its node {SERVER}, results and every of at least 1; "
            f"found {method.card.name}, node {box.node}, results {results}, every {every}"
        )
    server = _Server(method, x, box, folder)
    server.begin()
    over = server.taken >= results
    while not over:
        if server.take(results):
            over = listen(server.state, server.taken, server.seconds) or server.taken == results
            if over:
                server.save()
            elif server.taken % every == 0:
                server.save_if_possible()
    box.mark(OVER)
    return Served(server.state, server.order)


class _Server:
    def __init__(self, method: Method[Any], x: Tensor, box: Links, folder: Path | None) -> None:
        self._method, self._box, self._folder = method, box, folder
        self._settings = {
            "method": method.card.name,
            "elements": x.numel(),
            **{f"method.{name}": value for name, value in method.settings.items()},
        }
        self.state, self.taken = method.init(SERVER, x), 0
        self.order: list[Event] = []
        self._timer = Countdown(method)
        self._here = set[int]()  # the workers that have told what they were given
        self._start = time.perf_counter()

    def begin(self) -> None:
        """Go on from a checkpoint, without any worker; or wait for the workers and start them."""
        if self._folder is not None and steps_in(self._folder, 0):
            self._load(self._folder)
            self._happen(LEFT, SERVER)
        else:
            self._start_all()

    def _start_all(self) -> None:
        told = set[int]()
        deadline = time.perf_counter() + self._box.patience
        while len(told) < self._method.workers and (left := deadline - time.perf_counter()) > 0:
            found = self._box.take(left)
            if isinstance(found, Message):
                told.add(found.source)
                if (given := int(found.numbers[0])) > 0:
                    raise CheckpointError(
                        f"the server: {name_of(found.source)} has had {given} jobs of an earlier server, and "
                        f"there is no checkpoint in {self._folder}; give run_server its folder, or start all anew"
                    )
            elif found is not None and found.kind != JOINED:
                told.discard(found.node)
        if not told:
            raise PeerLost(f"the server: no worker came within {self._box.patience:g} s; start the workers")
        posts: list[tuple[int, Message]] = []
        self._method.start(self.state, Box(lambda to, message: posts.append((to, message))))
        self._start, self._here = time.perf_counter(), {*range(self._method.workers)}
        self.save()  # before anybody has a job
        for to, message in posts:
            self._box.post(to, message)
        for worker in sorted(self._here - told):
            self._happen(LEFT, worker)

    def take(self, results: int) -> bool:
        """Let one thing happen; return whether it was a result."""
        left = self._timer.left(self.state)
        found = self._box.take(self._box.patience if left is None else left)
        if found is None and left is not None:
            self.order.append(Event(self.seconds, TIMER, SERVER, SERVER))
            self._method.on_timer(self.state, self._box)
            return False
        if found is None:
            who = ", ".join(map(name_of, sorted(self._here))) or "nobody"
            raise PeerLost(
                f"the server: nothing came for {self._box.patience:g} s (there: {who}) after {self.taken} of "
                f"{results} results; start those that are missing, or raise patience where a job takes longer"
            )
        if isinstance(found, Change):
            if found.kind != JOINED and found.node in self._here:
                self._happen(LEFT, found.node)
            return False
        worker = found.source
        if worker not in self._here:  # its first message
            self._happen(JOINED, worker, int(found.numbers[0]))
            return False
        now = self.seconds
        self.order += [Event(now, MESSAGE, worker, SERVER), Event(now, STEP, worker, worker)]
        self.order.append(Event(now, MESSAGE, SERVER, worker))
        self._method.on_message(self.state, found, self._box)
        self.taken += 1
        fault_points.reach(fault_points.RESULT_TAKEN, number=self.taken)
        return True

    def _happen(self, kind: str, worker: int, given: int = 0) -> None:
        self.order.append(Event(self.seconds, kind, SERVER, worker, given))
        if kind == LEFT:
            self._here.discard(worker)
            self._method.on_left(self.state, worker, self._box)
        else:
            self._here.add(worker)
            self._method.on_joined(self.state, worker, given, self._box)
        fault_points.reach(fault_points.WORKERS_CHANGED, kind=kind, worker=worker)

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.perf_counter() - self._start

    def save_if_possible(self) -> None:
        """Write a checkpoint; one that fails does not stop the training."""
        try:
            self.save()
        except CheckpointError as error:
            warnings.warn(f"{error}; the training goes on", stacklevel=3)

    def save(self) -> None:
        """Write a checkpoint, if there is a folder, and remove old ones; not where another server is at work."""
        if self._folder is None:
            return
        self._box.check_place()
        content = {
            "settings": self._settings,
            "server": dataclasses.asdict(self.state),
            "order": [tuple(event) for event in self.order],
        }
        path = path_of(self._folder, self.taken, 0)
        try:
            write(path, content_of(self.taken, content, 0, 1, ""))
        except (OSError, RuntimeError) as error:
            raise unwritable(path, error) from error
        for step in steps_in(self._folder)[KEPT:]:
            remove_step(self._folder, step)

    def _load(self, folder: Path) -> None:
        """Take over the newest checkpoint."""
        self.taken, (saved,) = load_any(folder)
        settings = field(saved, "settings")
        for name in sorted({*self._settings, *settings}):
            same(name, self._settings.get(name), settings.get(name))
        try:
            self.state = type(self.state)(**field(saved, "server"))
            self.order = [Event(*event) for event in field(saved, "order")]
        except TypeError as error:
            raise CheckpointError(f"{folder}: damaged or of another version ({error}); start a new run") from None
        self._start -= self.order[-1].time if self.order else 0.0
