"""An asynchronous run in this process, in virtual time."""

from __future__ import annotations

from typing import Any

from swarmstep.asynchronous import SERVER, Simulator
from swarmstep.asynchronous.nodes import MESSAGE, STEP
from swarmstep.checkpoint import loader
from swarmstep.errors import CheckpointError, Interrupted
from swarmstep.train.asynchronous.local_steps import LocalSteps
from swarmstep.train.asynchronous.methods import build_method
from swarmstep.train.asynchronous.record import Record, count_results
from swarmstep.train.config import Config
from swarmstep.train.job import Job
from swarmstep.train.lockstep_coordinator import LOOK_EVERY
from swarmstep.train.speed_options import parse_speeds
from swarmstep.train.work_done import WorkDone
from swarmstep.workloads import Workload


def simulated(config: Config, workload: Workload, job: Job) -> dict[str, Any]:
    """Run all nodes of an asynchronous method inside this process and return the summary.

    A step of --batch examples takes its worker's number of --speeds, in virtual seconds; sending takes none. The
    run's steps are those of an equal worker: it ends when all together have taken `steps` times W.

    Raises:
        Interrupted: somebody asked to stop; there is a checkpoint.
        SwarmstepError: as the parts of a run say.
    """
    work = LocalSteps(config, workload)
    record = Record(config, workload, job, work)
    try:
        return _Simulated(config, job, work, record).run()
    finally:
        record.close()


class _Simulated:
    """The run: its simulator, and what has been done by now."""

    def __init__(self, config: Config, job: Job, work: LocalSteps, record: Record) -> None:
        self._config, self._job, self._work, self._record = config, job, work, record
        self._method = build_method(config, work)
        self._simulator = Simulator(self._method, work.x, parse_speeds(config))
        self._done = 0  # local steps whose results have come

    @property
    def _step(self) -> int:
        """The run's step: of an equal worker."""
        return min(self._done // self._config.workers, self._config.training.steps)

    def run(self) -> dict[str, Any]:
        """Let events happen until the work is done; return the summary."""
        config, job, simulator = self._config, self._job, self._simulator
        if job.resume:
            self._load()
        job.check_stop_at(self._step, config.training.steps)
        self._record.logger.begin(config)
        while self._done < config.training.steps * config.workers:
            before = self._step
            simulator.run(events=1)
            event = simulator.order[-1]
            if (event.kind, event.node) == (MESSAGE, SERVER) or (
                event.kind == STEP and not self._method.has_server
            ):
                self._done += self._method.steps
                self._reached(before)
        return self._record.end(simulator.result(), self._step, self._rounds, simulator.now, self._by_worker())

    def _reached(self, before: int) -> None:
        """Look, evaluate, save and stop, each where it is due since the step `before`."""
        config, job, step, simulator = self._config, self._job, self._step, self._simulator

        def due(every: int) -> bool:
            return step // every > before // every

        last = step == config.training.steps
        if due(LOOK_EVERY) or last:
            self._record.look(step, self._rounds, self._by_worker())
        if last:
            return
        if due(config.training.eval_every):
            self._record.evaluate(simulator.result(), step, simulator.now, self._by_worker())
        stop = job.stopping() or (job.stop_at is not None and step >= job.stop_at)
        if stop or due(config.checkpoint_every):
            self._record.save(step, {"simulator": simulator.state_dict(), "done": self._done})
        if stop:
            raise Interrupted(f"stopped at step {step} of {config.training.steps}{self._record.resume_hint()}")

    @property
    def _rounds(self) -> int:
        """Steps of the server."""
        return self._simulator.states[SERVER].version if self._method.has_server else 0

    def _by_worker(self) -> list[WorkDone]:
        simulator, steps = self._simulator, self._method.steps
        rows = [
            WorkDone(rank, simulator.states[rank].done * steps, computed, simulator.now - computed)
            for rank, computed in enumerate(simulator.computed)
        ]
        if self._method.has_server:
            count_results(rows, simulator.states[SERVER])
        return rows

    def _load(self) -> None:
        """Go on from the newest checkpoint, if there is one."""
        record = self._record
        if not record.checkpoints.is_dir():
            record.logger.rewind(0)
            return
        _, states = loader.load_any(record.checkpoints)
        try:
            self._simulator.load_state_dict(states[0]["simulator"])
            self._done = states[0]["done"]
            self._work.losses[:], record.scores = states[0]["losses"], states[0]["scores"]
        except (LookupError, TypeError, ValueError) as error:
            raise CheckpointError(f"{record.checkpoints}: damaged or foreign ({error}); start a new run") from None
        record.logger.rewind(self._step)
