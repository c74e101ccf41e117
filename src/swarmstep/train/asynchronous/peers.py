"""An asynchronous run without a server, in real processes: each worker is one; who dies is started again."""

from __future__ import annotations

import time
import warnings
from collections import Counter
from typing import Any

import torch

from swarmstep.asynchronous import LayUp, LayUpState, Links, Message, run_peer
from swarmstep.errors import Interrupted, PeerLost, UsageError
from swarmstep.train.asynchronous.evaluations import Evaluations
from swarmstep.train.asynchronous.local_steps import LocalSteps
from swarmstep.train.asynchronous.record import Record
from swarmstep.train.asynchronous.told import SAVED, SLICE, Told, tell
from swarmstep.train.config import Config
from swarmstep.train.job import Job
from swarmstep.train.lockstep_coordinator import LOOK_EVERY
from swarmstep.train.pace import Pace
from swarmstep.train.work_done import WorkDone
from swarmstep.workloads import Workload

RECORDER = 0  # the node that looks, evaluates, and writes the result
STEPS, BEGAN, STOPPED = "steps", "began", "stopped"  # in the store
NOTHING = "nothing"  # a node has no model to hand over
ENDLESS = 1 << 62


def check_call(job: Job) -> None:
    """Raise UsageError where such a run cannot do what is asked for.

    Args:
        job: how the run is to be carried out.
    """
    if job.resume or job.stop_at is not None:
        raise UsageError(
            f"{'--resume' if job.resume else '--stop-at'}: workers without a server write no checkpoint; expected "
            "--backend sim, or a method with a server"
        )


def as_peer(
    config: Config, workload: Workload, job: Job, node: int, silence: float, patience: float
) -> dict[str, Any] | None:
    """Be a worker; one of them, the recorder, returns the summary. Arguments and errors as of `processes.as_node`.

    The run is over when all together have taken `steps` times W. Then each worker hands its model over to the
    recorder, with all of its weight: what that holds is the weighted mean of all, sum w x / sum w.
    """
    check_call(job)
    work = _Worker(config, workload, Pace(config, node, job.pace))
    method = LayUp(config.workers, work.model, work.loss, lr=config.training.lr, seed=config.seed)
    with Links.from_env(method, node=node, silence=silence, patience=patience) as box:
        if node != RECORDER:
            _Peer(config, method, work, box).hand_over()
            return None
        record = Record(config, workload, job, work, held=True)
        try:
            return _Recorder(config, method, work, box, record).collect()
        finally:
            record.close()


class _Worker(LocalSteps):
    """The loss of a batch, which notes when a step has begun."""

    began = 0.0

    def loss(self, model: torch.nn.Module, worker: int, step: int) -> torch.Tensor:
        self.began = time.perf_counter()
        return super().loss(model, worker, step)

    def finish(self, step: int) -> None:
        """Let the rest of a step's time pass."""
        self._wait(self.began, step)


class _Peer:
    """A worker's part."""

    def __init__(self, config: Config, method: LayUp, work: _Worker, box: Links) -> None:
        self._config, self._method, self._work, self._box = config, method, work, box
        self._own = 0  # steps of this process

    @property
    def _all(self) -> int:
        """How many steps all have taken together."""
        return self._box.count(STEPS, 0)

    @property
    def _over(self) -> bool:
        return self._all >= self._config.training.steps * self._config.workers or self._box.marked(STOPPED)

    def hand_over(self) -> None:
        """Train, hand the model over, and wait until the result is written."""
        self._give(self._train())

    def _train(self) -> LayUpState:
        if self._over:  # this process has come in another's place when nothing was left to do
            return self._method.enter(self._box.node, self._work.x)
        return run_peer(self._method, self._work.x, self._box, ENDLESS, listen=self._took, over=lambda: self._over)

    def _took(self, state: LayUpState) -> None:
        """Note a step."""
        box, work = self._box, self._work
        if box.stop_requested():
            box.mark(STOPPED)
        work.finish(state.done)
        self._own += 1
        tell(box, self._own, work.computed, work.losses[box.node])
        box.count(STEPS, 1)

    def _give(self, state: LayUpState) -> None:
        """Give the recorder the model; keep it until the result is written, for the next one if it dies."""
        box, given = self._box, False
        if not self._method.ready(state):
            box.mark(f"last/{box.node}", NOTHING)
        deadline = time.monotonic() + box.patience
        while not box.marked(SAVED):
            if RECORDER not in box.here:
                given = False
            elif not given and self._method.ready(state):
                self._method.hand_over(state, RECORDER, box)
                given = True
            found = box.take(SLICE)
            if isinstance(found, Message) and not given:
                self._method.on_message(state, found, box)
            if time.monotonic() > deadline:
                raise PeerLost(f"worker {box.node}: no result was written for {box.patience:g} s; start all anew")


class _Recorder(_Peer):
    """The part of the worker that looks and evaluates beside its work, and writes the result down."""

    def __init__(self, config: Config, method: LayUp, work: _Worker, box: Links, record: Record) -> None:
        super().__init__(config, method, work, box)
        self._record, self._told = record, Told(box, config.workers, work.losses)
        self._evaluations = Evaluations(record)
        self._seen = self._step  # a process before this one may have looked
        if not box.text_of(BEGAN):
            box.mark(BEGAN, repr(time.time()))

    @property
    def _step(self) -> int:
        return min(self._all // self._config.workers, self._config.training.steps)

    @property
    def _seconds(self) -> float:
        return time.time() - float(self._box.text_of(BEGAN))

    def collect(self) -> dict[str, Any]:
        """Train, take what the others hand over, and return the summary."""
        record, config, box = self._record, self._config, self._box
        record.logger.rewind(self._seen)
        self._told.go_on(record.logger.newest("look").get("by_worker", []))
        record.logger.begin(config)
        state = self._train()
        seconds = self._seconds
        self._collect(state)
        self._evaluations.finish()
        if box.marked(STOPPED):
            box.mark(SAVED)
            raise Interrupted(
                f"stopped at step {self._step} of {config.training.steps}; no checkpoint was written"
            )
        if not self._method.ready(state):
            raise PeerLost("all workers were lost before any could hand its model over; start the run anew")
        summary = record.end(state.x, self._step, 0, seconds, self._by_worker(seconds))
        box.mark(SAVED)
        return summary

    def _took(self, state: LayUpState) -> None:
        super()._took(state)
        before, config = self._seen, self._config
        self._seen = step = self._step
        seconds, last = self._seconds, step == config.training.steps
        rows = self._by_worker(seconds)
        if step // LOOK_EVERY > before // LOOK_EVERY or last:
            self._record.look(step, 0, rows)
        every = config.training.eval_every
        if step // every > before // every and not last:
            self._evaluations.settle()
            self._evaluations.start(state.x.clone(), step, seconds, rows)

    def _collect(self, state: LayUpState) -> None:
        """Take in what the others hand over, as far as they live."""
        box, came = self._box, Counter[int]()
        missing, deadline = {*box.peers}, time.monotonic() + box.patience
        while missing and time.monotonic() < deadline:
            found = box.take(SLICE)
            if isinstance(found, Message):
                self._method.on_message(state, found, box)
                came[found.source] += self._method.is_last(found)
            missing = {peer for peer in missing if not came[peer] and box.text_of(f"last/{peer}") != NOTHING}
        if missing:
            who = ", ".join(map(str, sorted(missing)))
            warnings.warn(
                f"the result is without workers {who}: nothing came for {box.patience:g} s", stacklevel=2
            )

    def _by_worker(self, seconds: float) -> list[WorkDone]:
        return [
            WorkDone(rank, steps, computed, max(0.0, seconds - computed))
            for rank, (steps, computed) in enumerate(self._told.all())
        ]
