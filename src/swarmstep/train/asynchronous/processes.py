"""An asynchronous run in real processes: each worker is one, and so is the server; who dies is started again."""

from __future__ import annotations

import time
from typing import Any

from torch import Tensor

from swarmstep.asynchronous import SERVER, Ledger, Links, Method, run_server, run_worker
from swarmstep.checkpoint.folder import steps_in
from swarmstep.checkpoint.loader import newest
from swarmstep.errors import Interrupted, PeerLost, UsageError
from swarmstep.train.asynchronous.evaluations import Evaluations
from swarmstep.train.asynchronous.local_steps import LocalSteps
from swarmstep.train.asynchronous.methods import build_method
from swarmstep.train.asynchronous.peers import as_peer
from swarmstep.train.asynchronous.record import Record, count_results
from swarmstep.train.asynchronous.told import SAVED, SLICE, Told, tell
from swarmstep.train.config import Config
from swarmstep.train.job import Job
from swarmstep.train.lockstep_coordinator import LOOK_EVERY
from swarmstep.train.pace import Pace
from swarmstep.train.work_done import WorkDone
from swarmstep.workloads import Workload


def node_of(slot: int, config: Config, here: int) -> int:
    """Return which node a process is.

    Args:
        slot: of the process, among those of all machines: the first machine has the first ones.
        config: of the run.
        here: workers on the first machine, after which its server comes.

    Raises:
        UsageError: the run has no more workers.
    """
    servers = config.nodes - config.workers
    if servers and slot == here:
        return SERVER
    node = slot - (servers if slot > here else 0)
    if node >= config.workers:
        raise UsageError(f"--workers: the run has {config.workers}, and all have come already; bring fewer")
    return node


def as_node(
    config: Config, workload: Workload, job: Job, node: int, silence: float, patience: float
) -> dict[str, Any] | None:
    """Be a worker, or the server, which returns the summary.

    Args:
        config: resolved.
        workload: its data.
        job: how the run is carried out; its folder, if there is one, is held by the supervisor.
        node: which one this process is.
        silence: seconds without a sign of life after which a node is lost.
        patience: seconds to wait for one that is lost to come back.

    Raises:
        Interrupted: somebody asked to stop; there is a checkpoint.
        UsageError: the run is past the step at which to stop.
        SwarmstepError: as the parts of a run say.
    """
    if config.nodes == config.workers:
        return as_peer(config, workload, job, node, silence, patience)
    work = _Worker(config, workload, None if node == SERVER else Pace(config, node, job.pace))
    method = build_method(config, work)
    with Links.from_env(method, node=node, silence=silence, patience=patience) as box:
        if box.node != SERVER:
            work.box = box
            run_worker(method, work.x, box)
            _await_end(box)
            return None
        record = Record(config, workload, job, work, held=True)
        try:
            return _Server(config, job, method, work, record, box).run()
        finally:
            record.close()


def _await_end(box: Links) -> None:
    """Wait until the result is written: an end of this process tells that it is. A server that dies comes back."""
    deadline = time.monotonic() + box.patience
    while not box.marked(SAVED):
        if time.monotonic() > deadline:
            raise PeerLost(f"worker {box.node}: the server wrote no result for {box.patience:g} s; resume the run")
        box.take(SLICE)


class _Worker(LocalSteps):
    """Local steps that tell the server, through the store, how long they took and how well they went."""

    box: Links | None = None
    jobs = 0  # that this process has done

    def end(self, x: Tensor, worker: int, number: int, results: int, memory: dict[str, Any]) -> Tensor:
        found = super().end(x, worker, number, results, memory)
        if self.box:
            self.jobs += 1
            tell(self.box, self.jobs * self.steps, self.computed, self.losses[worker])
        return found


class _Server:
    """The server's part: it evaluates beside its work, so that nobody waits for that."""

    def __init__(
        self, config: Config, job: Job, method: Method[Any], work: LocalSteps, record: Record, box: Links
    ) -> None:
        self._config, self._job, self._record, self._box = config, job, record, box
        self._method, self._work = method, work
        self._step, self._stopped = 0, False
        self._evaluations = Evaluations(record)
        self._told = Told(box, config.workers, work.losses)

    def _step_of(self, taken: int) -> int:
        """Return the run's step, of an equal worker, after so many results."""
        return min(taken * self._method.steps // self._config.workers, self._config.training.steps)

    def _results(self, steps: int) -> int:
        """Return how many results take the run so many steps further, at least."""
        return -(-steps * self._config.workers // self._method.steps)

    def run(self) -> dict[str, Any]:
        """Serve until the work is done; return the summary."""
        config, record, job = self._config, self._record, self._job
        folder = record.checkpoints if record.saver else None
        if folder and steps_in(folder, 0):
            self._step = self._step_of(newest(folder))
        if self._box.entry == 1:  # else a server before this one may just have stopped there
            job.check_stop_at(self._step, config.training.steps)
        record.logger.rewind(self._step)
        self._told.go_on(record.logger.newest("look").get("by_worker", []))
        record.logger.begin(config)
        served = run_server(
            self._method,
            self._work.x,
            self._box,
            self._results(config.training.steps),
            folder=folder,
            every=self._results(config.checkpoint_every),
            listen=self._took,
        )
        self._evaluations.finish()
        if self._stopped:
            self._box.mark(SAVED)
            hint = record.resume_hint()
            raise Interrupted(f"stopped at step {self._step} of {config.training.steps}{hint}")
        state, seconds = served.state, served.order[-1].time
        summary = record.end(state.x, self._step, state.version, seconds, self._by_worker(state, seconds))
        self._box.mark(SAVED)
        return summary

    def _took(self, state: Ledger, taken: int, seconds: float) -> bool:
        """Look, evaluate and stop, each where it is due; return whether to stop."""
        config, job, before = self._config, self._job, self._step
        self._step = step = self._step_of(taken)

        def due(every: int) -> bool:
            return step // every > before // every

        last = step == config.training.steps
        asked = due(1) and self._box.stop_requested()
        self._stopped = not last and (asked or (job.stop_at is not None and step >= job.stop_at))
        if due(LOOK_EVERY) or last or self._stopped:
            self._record.look(step, state.version, self._by_worker(state, seconds))
        if last:
            return False
        self._evaluations.settle()
        if due(config.training.eval_every):
            self._evaluations.start(state.x, step, seconds, self._by_worker(state, seconds))
        return self._stopped

    def _by_worker(self, state: Ledger, seconds: float) -> list[WorkDone]:
        rows = [
            WorkDone(rank, entered * self._method.steps, computed, max(0.0, seconds - computed))
            for rank, (entered, (_, computed)) in enumerate(zip(state.entered, self._told.all(), strict=True))
        ]
        count_results(rows, state)
        return rows
