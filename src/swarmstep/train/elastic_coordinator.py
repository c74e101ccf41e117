"""A run whose workers may be lost and come back while it goes on."""

from __future__ import annotations

import contextlib
import time
from typing import Any

from torch import Tensor

from swarmstep import waiting
from swarmstep.checkpoint import loader, saver
from swarmstep.comm.group import Group
from swarmstep.elastic.membership import Membership
from swarmstep.errors import CheckpointError, CommError, Interrupted, RunOver
from swarmstep.runtime.flat import Flat
from swarmstep.signal import MembershipChange, Round
from swarmstep.train import faults
from swarmstep.train.config import Config
from swarmstep.train.coordinator import Coordinator
from swarmstep.train.evaluate import evaluate
from swarmstep.train.job import Job
from swarmstep.train.resume import restore
from swarmstep.train.run_folder import RunFolder
from swarmstep.train.run_logger import RunLogger
from swarmstep.train.trainer import Trainer
from swarmstep.train.worker_events import WorkerEvents, shared_digest
from swarmstep.workloads import Workload


def run(config: Config, workload: Workload, membership: Membership, job: Job) -> dict[str, Any] | None:
    """Be one worker of an elastic run; return the summary where this worker concluded it, else None.

    Args:
        config: resolved; iid shards.
        workload: its data.
        membership: joins the groups.
        job: how to carry it out; `out` is made and held by whoever started the workers.

    Raises:
        Interrupted: somebody asked to stop; all workers stopped after the same round and wrote a checkpoint.
        SwarmstepError: as the parts of a run say.
    """
    folder = RunFolder(job.out, resume=True, held=True) if job.out else None
    logger = RunLogger(job.out, folder, f"{config.workload} {config.strategy}, elastic", job)
    with contextlib.ExitStack() as stack:
        stack.callback(membership.leave)
        stack.callback(logger.close)
        stack.enter_context(contextlib.suppress(RunOver))  # the run has ended without this worker
        events = WorkerEvents(job.out, membership.name)
        stack.enter_context(waiting.listening(lambda wait: events.write("waiting", what=wait.what)))
        began = time.monotonic()
        slot = int(membership.name.partition(".")[0])
        fault = stack.enter_context(faults.injected(config.fault, config.workers, config.seed, slot))
        trainer = Trainer(config, workload, membership.join(), job, fault)
        return trainer.train(Elastic(trainer, logger, job, membership, began, events))
    return None


class Elastic(Coordinator):
    """Everything outside of the rounds follows from the rounds, and needs no other worker.

    So only a round can fail, and it is taken again. The first rank evaluates its own weights, records and shows;
    each worker saves its own state.

    Args:
        trainer: of this worker, in its first group.
        logger: of the run.
        job: how the run is carried out.
        membership: of this worker.
        began: when this worker wanted to join, by `time.monotonic`.
        events: of this worker.
    """

    def __init__(
        self,
        trainer: Trainer,
        logger: RunLogger,
        job: Job,
        membership: Membership,
        began: float,
        events: WorkerEvents,
    ) -> None:
        super().__init__(trainer, logger, job)
        self.membership, self._began, self.events = membership, began, events
        self._before = 0  # the step of the round before the latest; the same on all workers
        self._writing = False  # a checkpoint
        self._over = False

    @property
    def comm(self) -> Group:
        """The group that this worker is in now."""
        return self.trainer.sync.comm

    def begin(self) -> None:
        """Begin together with all others, from the newest checkpoint if there is one, or join as a newcomer."""
        self.logger.lead(self.comm.rank == 0)
        if self.comm.sources:
            return
        if self.logger.path:
            self._load()
        self.logger.rewind(self.trainer.taken)
        self.logger.begin(self.trainer.config)
        sync, comm = self.trainer.sync, self.comm
        self._record_joined(
            MembershipChange(
                step=sync.steps,
                committed=sync.committed,
                rounds=sync.rounds,
                epoch=comm.epoch,
                sources=comm.sources,
                names=comm.names,
                rank=comm.rank,
                newcomer=False,
                states=sync.states,
                seconds=time.monotonic() - self._began,
            )
        )

    def _load(self) -> None:
        assert self.logger.path
        folder = self.logger.path / "checkpoints"
        step, states = 0, list[dict[str, Any]]()
        try:
            step, states = loader.load_any(folder)
        except CheckpointError:  # the run ended, or all workers were lost, before the first one; they start anew
            if self.job.resume and (folder.is_dir() or not (folder.parent / "summary.json").exists()):
                raise
        loader.check_same_step(folder, step, self.comm)
        if states:
            restore(self.trainer, dict(enumerate(states)), folder)
            self._before = self.trainer.share.committed

    def membership_changed(self, change: MembershipChange) -> None:
        """Record that this worker is in another group."""
        if change.rank < 0:  # it was before this worker came
            return
        self.logger.lead(change.rank == 0)
        if change.newcomer:
            self._before = self.trainer.share.committed
        self._record_joined(change)

    def _record_joined(self, change: MembershipChange) -> None:
        self.events.write(
            "joined",
            epoch=change.epoch,
            round=change.rounds,
            step=change.step,
            members=list(change.names),
            newcomer=change.newcomer,
            seconds=change.seconds,
            digest=shared_digest(change.states),
        )

    def wants_step(self) -> bool:
        """Return whether the run goes on; raise CommError if the process that started this worker has ended."""
        if self.job.stopping():
            raise CommError(f"worker {self.membership.name}: the process that started it has ended")
        return not self._over

    def round_landed(self, report: Round) -> None:
        """Record a round."""
        trainer, tally = self.trainer, self.trainer.tally
        own = report.losses[report.members.index(self.membership.name)]
        if own != own:  # NaN: the weights are the others' by now, and the optimizer's state goes as well
            trainer.optimizer.forget()
        known = [loss for loss in report.losses if loss < float("inf")]
        tally.train_loss = sum(known) / len(known) if known else tally.train_loss
        present = report.epoch == self.membership.epoch
        self.events.write(
            "round",
            epoch=report.epoch,
            round=report.number,
            step=report.step,
            members=list(report.members),
            averaged=report.participants,
            loss=tally.train_loss,
            done=list(trainer.share.done),
            digest=shared_digest(trainer.sync.states) if present else None,
        )
        self.record_round(report)

    def after_step(self, loss: Tensor, landed: list[Round]) -> None:
        """Do what follows from the rounds that have landed; nobody waits for another worker."""
        for report in landed:
            self._follow(report)

    def _follow(self, report: Round) -> None:
        """Show, evaluate, save and stop, each where it is due; due is the same on all workers."""
        trainer, config = self.trainer, self.trainer.config
        step = trainer.taken
        self.logger.show(trainer.progress(list(report.losses)))
        evaluates, saves = (
            report.step // every > self._before // every
            for every in (config.training.eval_every, config.checkpoint_every)
        )
        self._before = max(self._before, report.step)  # a worker that was suspended may report an old round
        if evaluates and self.comm.rank == 0:
            self._evaluate()
        if self.saver and (report.decision.stop or saves):
            self._save(self.saver, step)
        self._over = report.decision.finish
        if report.decision.stop:
            self._settle()
            self.membership.end()
            saved = self.saver and self.saver.done == step
            hint = self.logger.resume_hint() if saved else "; no checkpoint was written"
            raise Interrupted(f"stopped at step {step} of {trainer.steps}, after a round{hint}")

    def _evaluate(self) -> None:
        """Evaluate this worker's own weights: to ask for the result of all would need the others."""
        trainer = self.trainer
        Flat(trainer.spare).write(Flat(trainer.model).read())
        trainer.evaluate(lambda examples: evaluate(trainer.spare, trainer.workload, examples).score)
        self.record_evaluation(trainer.tally.bytes_sent)

    def _save(self, writer: saver.Saver, step: int) -> None:
        """Begin to write a checkpoint, and remove those of which all workers have newer ones."""
        self._settle()
        writer.prune(self.membership.saved_by_all(writer.done))
        try:
            state = self.trainer.checkpoint()
        except CommError:  # the round under way has failed, which the next step takes care of
            return
        writer.start(step, state, self.comm.rank, self.comm.size, self.membership.mark)
        self._writing = True

    def _settle(self) -> None:
        """Wait for the checkpoint that is being written; one that fails does not stop the training."""
        if self.saver and self._writing:
            self._writing = False
            try:
                self.saver.settle()
                self.events.write("checkpoint", step=self.saver.done)
            except CheckpointError as error:
                self.events.write("checkpoint failed", why=str(error))

    def conclude(self) -> dict[str, Any] | None:
        """Let one worker, the first that is left, evaluate its model; return the summary there."""
        means = self._means()
        self._settle()
        summary = self.membership.conclude(lambda: self._summarize(means))
        result = {"loss": summary["test_loss"], "accuracy": summary["test_accuracy"]} if summary else {}
        self.events.write("done", step=self.trainer.taken, round=self.trainer.sync.rounds, **result)
        return summary

    def _means(self) -> dict[str, float]:
        """Return the workers' mean figures; this worker's own if the group is lost at the very end."""
        try:
            return self.trainer.tally.means(self.comm)
        except CommError:
            return self.trainer.tally.means(None)

    def _summarize(self, means: dict[str, float]) -> dict[str, Any]:
        self.logger.lead()
        self._evaluate()
        return self.record_end(means)
