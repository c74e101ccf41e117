"""Evaluations of an asynchronous run beside its work, so that nobody waits for them."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from torch import Tensor

from swarmstep.train.asynchronous.record import Record
from swarmstep.train.work_done import WorkDone

PENDING = 8  # evaluations, each with a model of its own, at which the next one waits for the first


class Evaluations:
    """Evaluates one model after another in a thread of its own.

    Args:
        record: which evaluates and writes down.
    """

    def __init__(self, record: Record) -> None:
        self._record, self._thread = record, ThreadPoolExecutor(1)
        self._pending = list[Future[None]]()

    def settle(self) -> None:
        """Wait while too many have not ended; raises the error of one that has failed."""
        while self._pending and (self._pending[0].done() or len(self._pending) == PENDING):
            self._pending.pop(0).result()

    def start(self, x: Tensor, step: int, seconds: float, workers: Sequence[WorkDone]) -> None:
        """Evaluate a model [P], which nobody changes any more; arguments as of `Record.evaluate`."""
        self._pending.append(self._thread.submit(self._record.evaluate, x, step, seconds, workers))

    def finish(self) -> None:
        """Wait for all; raises the error of one that has failed."""
        self._thread.shutdown()
        for evaluation in self._pending:
            evaluation.result()
