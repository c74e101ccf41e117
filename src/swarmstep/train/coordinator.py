"""What a worker of a run does about the others outside of the rounds: when to look, evaluate, save and stop."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from swarmstep.checkpoint.saver import Saver
from swarmstep.signal import MembershipChange, Round
from swarmstep.train.job import Job
from swarmstep.train.local_step import bare
from swarmstep.train.run_logger import RunLogger
from swarmstep.train.work_done import WorkDone

if TYPE_CHECKING:
    from swarmstep.train.trainer import Trainer


class Coordinator(ABC):
    """Decides for a `Trainer` what is due when; the trainer knows how to do it.

    Args:
        trainer: of this worker.
        logger: of the run.
        job: how the run is carried out.
    """

    def __init__(self, trainer: Trainer, logger: RunLogger, job: Job) -> None:
        self.trainer, self.logger, self.job = trainer, logger, job
        self.saver = Saver(logger.path / "checkpoints") if logger.path else None

    @abstractmethod
    def begin(self) -> None:
        """Load the checkpoint to go on from, if there is one, and record that the run begins."""

    @abstractmethod
    def wants_step(self) -> bool:
        """Return whether the worker takes another step; the run's number of steps has not been reached."""

    @abstractmethod
    def membership_changed(self, change: MembershipChange) -> None:
        """Take note that the worker is in another group."""

    @abstractmethod
    def round_landed(self, report: Round) -> None:
        """Record a round that the trainer has counted."""

    @abstractmethod
    def after_step(self, loss: Tensor, landed: list[Round]) -> None:
        """Look at the others, evaluate, save and stop, each where it is due.

        Args:
            loss: of the step, a scalar.
            landed: the rounds that have landed in it.

        Raises:
            Interrupted: somebody asked to stop; all workers stopped at the same step and wrote a checkpoint.
        """

    @abstractmethod
    def conclude(self) -> dict[str, Any] | None:
        """Evaluate the final model and record the summary; return it, None where another worker does so."""

    def record_evaluation(self, bytes_sent: float) -> None:
        """Record the trainer's latest scores, and what its modifiers say of this worker's own model.

        Args:
            bytes_sent: per worker, so far.
        """
        trainer = self.trainer
        self.logger.record(
            kind="evaluation",
            step=trainer.taken,
            seconds=trainer.tally.seconds,
            bytes_sent=bytes_sent,
            **trainer.scores,
            **trainer.modifiers.metrics(trainer.model),
        )

    def record_round(self, report: Round) -> None:
        """Record a round that has landed."""
        row = {**dataclasses.asdict(report), "decision": None}
        self.logger.record(kind="round", landed=self.trainer.taken, **row)

    def record_end(self, means: dict[str, float], by_worker: Sequence[WorkDone] = ()) -> dict[str, Any]:
        """Record the trace, the model and the summary; return the summary.

        Args:
            means: of the workers' figures, as `Tally.means` returns them.
            by_worker: what each has done, where that is known.
        """
        trainer = self.trainer
        self.logger.record(kind="trace", step=trainer.taken, folded=trainer.trace.folded)
        summary = trainer.summary(means, by_worker, str(self.logger.path) if self.logger.path else None)
        self.logger.end(trainer.modifiers.finished(bare(trainer.model)), summary)
        return summary
