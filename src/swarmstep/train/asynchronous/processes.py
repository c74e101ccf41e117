"""An asynchronous run in real processes: each worker is one, and so is the server; who dies is started again."""

from __future__ import annotations

import contextlib
import json
import math
import os
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from torch import Tensor

from swarmstep.asynchronous import SERVER, Ledger, Links, run_server, run_worker
from swarmstep.checkpoint.folder import steps_in
from swarmstep.errors import Interrupted
from swarmstep.train.asynchronous.local_steps import LocalSteps
from swarmstep.train.asynchronous.methods import build_method
from swarmstep.train.asynchronous.record import Record
from swarmstep.train.config import Config
from swarmstep.train.job import Job
from swarmstep.train.lockstep_coordinator import LOOK_EVERY
from swarmstep.train.pace import Pace
from swarmstep.train.work_done import WorkDone
from swarmstep.workloads import Workload


def as_node(
    config: Config, workload: Workload, job: Job, rank: int, silence: float, patience: float
) -> dict[str, Any] | None:
    """Be a worker, or the server, which returns the summary.

    Args:
        config: resolved.
        workload: its data.
        job: how the run is carried out; its folder, if there is one, is held by the supervisor.
        rank: of this process: the last one is the server.
        silence: seconds without a sign of life after which a node is lost.
        patience: seconds to wait for one that is lost to come back.

    Raises:
        Interrupted: somebody asked to stop; there is a checkpoint.
        SwarmstepError: as the parts of a run say.
    """
    server = rank == config.workers
    work = _Worker(config, workload, None if server else Pace(config, rank, job.pace))
    method = build_method(config, work)
    with Links.from_env(method, silence=silence, patience=patience) as box:
        if box.node != SERVER:
            work.box = box
            run_worker(method, work.x, box)
            return None
        record = Record(config, workload, job, work, held=True)
        try:
            return _Server(config, job, work, record, box).run()
        finally:
            record.close()


class _Worker(LocalSteps):
    """Local steps that tell the server, through the store, how long they took and how well they went."""

    box: Links | None = None

    def end(self, x: Tensor, worker: int, number: int, results: int, memory: dict[str, Any]) -> Tensor:
        found = super().end(x, worker, number, results, memory)
        if self.box:
            self.box.mark(f"did/{worker}", json.dumps([self.computed, self.losses[worker]]))
        return found


class _Server:
    """The server's part: it evaluates beside its work, so that nobody waits for that."""

    def __init__(self, config: Config, job: Job, work: LocalSteps, record: Record, box: Links) -> None:
        self._config, self._job, self._work, self._record, self._box = config, job, work, record, box
        self._method = build_method(config, work)
        self._step, self._stopped = 0, False
        self._evaluator = ThreadPoolExecutor(1, initializer=_yield_to_others)
        self._evaluations: list[Future[None]] = []

    def _step_of(self, taken: int) -> int:
        """Return the run's step, of an equal worker, after so many results."""
        return min(taken * self._method.steps // self._config.workers, self._config.training.steps)

    def run(self) -> dict[str, Any]:
        """Serve until the work is done; return the summary."""
        config, record = self._config, self._record
        per_step = config.workers / self._method.steps
        folder = record.checkpoints if record.saver else None
        self._step = self._step_of(max(steps_in(folder, 0), default=0)) if folder else 0
        record.logger.rewind(self._step)
        record.logger.begin(config)
        served = run_server(
            self._method,
            self._work.x,
            self._box,
            math.ceil(config.training.steps * per_step),
            folder=folder,
            every=max(1, round(config.checkpoint_every * per_step)),
            listen=self._took,
        )
        self._evaluator.shutdown()
        for evaluation in self._evaluations:
            evaluation.result()
        if self._stopped:
            hint = record.resume_hint()
            raise Interrupted(f"stopped at step {self._step} of {config.training.steps}{hint}")
        state, seconds = served.state, served.order[-1].time
        return record.end(state.x, self._step, state.version, seconds, self._by_worker(state, seconds))

    def _took(self, state: Ledger, taken: int, seconds: float) -> bool:
        """Look, evaluate and stop, each where it is due; return whether to stop."""
        config, job, before = self._config, self._job, self._step
        self._step = step = self._step_of(taken)

        def due(every: int) -> bool:
            return step // every > before // every

        last = step == config.training.steps
        if due(LOOK_EVERY) or last:
            self._record.look(step, state.version, self._by_worker(state, seconds))
        if last:
            return False
        if due(config.training.eval_every):
            rows = self._by_worker(state, seconds)
            self._evaluations.append(self._evaluator.submit(self._record.evaluate, state.x, step, seconds, rows))
        asked = due(1) and self._box.stop_requested()
        self._stopped = asked or (job.stop_at is not None and step >= job.stop_at)
        return self._stopped

    def _by_worker(self, state: Ledger, seconds: float) -> list[WorkDone]:
        rows: list[WorkDone] = []
        for rank, entered in enumerate(state.entered):
            told = self._box.text_of(f"did/{rank}")
            computed, self._work.losses[rank] = json.loads(told) if told else (0.0, math.nan)
            row = WorkDone(rank, entered * self._method.steps, computed, max(0.0, seconds - computed))
            row.staleness = state.late[rank] / max(1, entered)
            row.dropped = sum(worker == rank for worker, *_ in state.dropped)
            rows.append(row)
        return rows


def _yield_to_others() -> None:
    """Let this thread compute where the workers, which may be on the same machine, leave time for it."""
    with contextlib.suppress(OSError, AttributeError):  # not on Linux
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 15)
