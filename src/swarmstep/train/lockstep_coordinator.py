"""A run whose workers stay the same from its beginning to its end, in one process or in many."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from swarmstep.checkpoint import loader, saver
from swarmstep.comm.group import Group
from swarmstep.comm.sim import simulate
from swarmstep.errors import CheckpointError, Interrupted
from swarmstep.runtime.flat import Flat
from swarmstep.signal import MembershipChange, Round
from swarmstep.train import faults
from swarmstep.train.build import title_of
from swarmstep.train.config import Config
from swarmstep.train.coordinator import Coordinator
from swarmstep.train.evaluate import evaluate_together
from swarmstep.train.job import Job
from swarmstep.train.pace import has_virtual_time
from swarmstep.train.rank_0 import from_rank_0
from swarmstep.train.resume import restore
from swarmstep.train.run_folder import RunFolder, new_folder
from swarmstep.train.run_logger import RunLogger
from swarmstep.train.tally import work_done
from swarmstep.train.trainer import Trainer
from swarmstep.workloads import Workload

LOOK_EVERY = 25  # steps between two looks of all workers at each other


def simulated(config: Config, workload: Workload, job: Job) -> dict[str, Any]:
    """Run all workers inside this process and return the summary."""
    virtual = has_virtual_time(config)
    return simulate(lambda comm: run(config, workload, comm, job), config.workers, virtual_time=virtual)[0]


def run(config: Config, workload: Workload, comm: Group, job: Job) -> dict[str, Any]:
    """Be one worker of a run and return its summary, the same on all ranks.

    Args:
        config: resolved; the same on all ranks.
        workload: its data.
        comm: the group, of `config.workers`.
        job: how to carry it out.

    Raises:
        Interrupted: somebody asked to stop; all ranks stopped at the same step and wrote a checkpoint.
        SwarmstepError: as the parts of a run say.
    """
    logger = open_logger(config, comm, job)
    try:
        with faults.injected(config.fault, config.workers, config.seed, comm.rank) as fault:
            trainer = Trainer(config, workload, comm, job, fault)
            summary = trainer.train(Lockstep(trainer, logger, job))
    finally:
        logger.close()
    assert summary is not None
    return summary


def open_logger(config: Config, comm: Group, job: Job) -> RunLogger:
    """Return the logger of a run; rank 0 opens the folder. Collective: its error is raised on all ranks."""
    folders: list[RunFolder] = []

    def open_folder() -> str:
        folders.append(RunFolder(job.out or new_folder(config), resume=job.resume))
        return str(folders[0].path)

    try:
        path = Path(from_rank_0(open_folder, comm)) if job.keep else None
    except BaseException:
        for folder in folders:
            folder.close()
        raise
    logger = RunLogger(path, folders[0] if folders else None, title_of(config), job)
    logger.lead(comm.rank == 0)
    return logger


class Lockstep(Coordinator):
    """All workers take the same steps: they look at each other every so many, and evaluate and save together."""

    def __init__(self, trainer: Trainer, logger: RunLogger, job: Job) -> None:
        super().__init__(trainer, logger, job)
        self.comm = trainer.sync.comm
        self._window = torch.zeros((), device=trainer.device)  # sum of the losses since the last look
        self._looked = 0  # this worker's step at the last look
        self._met, self._evaluated = 0, 0  # the steps of the run at the last look, and at the last evaluation
        self._bytes_sent = 0.0  # mean over the workers, at the last look

    def begin(self) -> None:
        """Go on from the newest checkpoint, where the run is resumed."""
        if self.job.resume:
            self._load()
        self.job.check_stop_at(self.trainer.taken, self.trainer.steps)
        self.logger.begin(self.trainer.config)

    def _load(self) -> None:
        folder = self._checkpoints
        seen = torch.tensor([folder.is_dir(), (folder.parent / "summary.json").exists()])
        saved, done = self.comm.gather(seen).any(0).tolist()
        if not saved and (done or self.trainer.config.elastic):
            self.logger.rewind(0)  # the run ended, or was lost, before its first checkpoint
            return
        state = restore(self.trainer, loader.load_own_or_all(folder, self.comm), folder)["lockstep"]
        self._window.copy_(state["window"])
        self._looked, self._evaluated = state["looked"], state["evaluated"]
        self._met = state.get("met", self.trainer.taken)  # earlier versions lack it
        self.logger.rewind(self.trainer.taken)

    @property
    def _checkpoints(self) -> Path:
        assert self.logger.path
        return self.logger.path / "checkpoints"

    def wants_step(self) -> bool:
        """Return whether the accuracy at which to end has not been reached; the same on all ranks."""
        until = self.trainer.config.until_accuracy
        return until is None or self.trainer.scores.get("test_accuracy", 0.0) < until

    def membership_changed(self, change: MembershipChange) -> None:
        """Never happens: the group stays as it is."""
        raise AssertionError(change)

    def round_landed(self, report: Round) -> None:
        """Record a round."""
        self.record_round(report)

    def after_step(self, loss: Tensor, landed: list[Round]) -> None:
        """Look at the others, evaluate, save and stop, each where it is due, the same on all ranks.

        With --balance steps the workers are together after a round only, and so is what is due.
        """
        self._window += loss
        step, trainer = self.trainer.taken, self.trainer
        if not trainer.share.together:
            return
        last, stride = step == trainer.steps, trainer.share.stride
        stop = self.job.stop_at is not None and step >= self.job.stop_at
        evaluates = not last and self._is_due(trainer.config.training.eval_every, self._evaluated)
        if self._is_due(LOOK_EVERY, self._met) or last or evaluates or trainer.share.unmeasured:
            with trainer.timed():  # so that an evaluation does not begin with a wait for the slowest worker
                stop = self._look() or stop
        if last:
            return
        if evaluates:
            self._evaluated = step
            Flat(trainer.spare).write(trainer.sync.result())
            self._evaluate(trainer.spare)
        if self.saver and (stop or step % trainer.config.checkpoint_every < stride):
            self._save(self.saver)
        if stop:
            if self.saver:
                self.saver.agree(self.comm)
            hint = self.logger.resume_hint() if self.saver else ""
            raise Interrupted(f"stopped at step {step} of {trainer.steps}, on all ranks{hint}")

    def _is_due(self, every: int, before: int) -> bool:
        """Return whether to do now what comes each `every` steps and came at the step `before`.

        Not during a round: an evaluation would hide its transfer, and a look would wait behind it.
        """
        due = self.trainer.taken // every - before // every
        return due > 1 or (due == 1 and not self.trainer.sync.under_way)

    def _look(self) -> bool:
        """Gather the losses, show them, and return whether any rank was asked to stop. Collective."""
        trainer = self.trainer
        own, tally = trainer.sync.steps, trainer.tally
        loss = float(self._window) / max(1, own - self._looked)
        self._window.zero_()
        self._looked, self._met = own, trainer.taken
        row = [loss, self.job.stopping(), tally.bytes_sent, trainer.share.measurement(), *trainer.done()]
        rows = self.comm.gather(torch.tensor(row, dtype=torch.float64))
        losses = rows[:, 0].tolist()
        self._bytes_sent = float(rows[:, 2].mean())
        tally.train_loss = sum(losses) / len(losses)
        trainer.share.update(rows[:, 3].tolist())
        shares = {"shares": list(trainer.share.shares)} if trainer.share.balanced else {}
        by_worker = work_done(rows[:, 4:])
        self.logger.record(
            kind="look", step=trainer.taken, losses=losses, **shares, by_worker=[*map(asdict, by_worker)]
        )
        self.logger.show(trainer.progress(losses, by_worker))
        return bool(rows[:, 1].any())

    def _evaluate(self, model: torch.nn.Module) -> None:
        trainer = self.trainer
        identical = trainer.strategy.one_result or trainer.config.by_gradients
        trainer.evaluate(
            lambda examples: evaluate_together(model, trainer.workload, examples, self.comm, identical=identical)
        )
        self.record_evaluation(self._bytes_sent)

    def _agree(self, writer: saver.Saver) -> None:
        """Wait for the latest checkpoint; one that fails, on whichever rank, does not stop the training."""
        try:
            writer.agree(self.comm)
        except CheckpointError as error:  # on all ranks
            self.logger.complain(error)

    def _save(self, writer: saver.Saver) -> None:
        self._agree(writer)
        own = {"window": self._window, "looked": self._looked, "met": self._met, "evaluated": self._evaluated}
        state = {**self.trainer.checkpoint(), "lockstep": own}
        writer.start(self.trainer.taken, state, self.comm.rank, self.comm.size)

    def conclude(self) -> dict[str, Any]:
        """Evaluate the final model together; return the summary on all ranks."""
        if self.saver:
            self._agree(self.saver)
        tally = self.trainer.tally
        means = tally.means(self.comm)
        by_worker = work_done(self.comm.gather(torch.tensor(self.trainer.done(), dtype=torch.float64)))
        self._bytes_sent = means["bytes_sent"]
        self._evaluate(self.trainer.model)
        return self.record_end(means, by_worker)
