"""What an asynchronous run writes down and shows: looks, evaluations, and a summary with each worker."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from swarmstep.asynchronous import Ledger
from swarmstep.checkpoint.saver import Saver
from swarmstep.errors import CheckpointError
from swarmstep.runtime.flat import Flat
from swarmstep.train.asynchronous.local_steps import LocalSteps
from swarmstep.train.config import Config
from swarmstep.train.evaluate import evaluate, named_scores
from swarmstep.train.job import Job
from swarmstep.train.local_step import bare
from swarmstep.train.modifiers import build_modifiers
from swarmstep.train.progress import Progress
from swarmstep.train.run_folder import RunFolder, new_folder
from swarmstep.train.run_logger import RunLogger
from swarmstep.train.work_done import WorkDone
from swarmstep.workloads import Workload


def count_results(rows: Sequence[WorkDone], ledger: Ledger) -> None:
    """Set how late each worker's results were, and how many were dropped, as the server has counted them."""
    dropped = Counter(worker for worker, *_ in ledger.dropped)
    for row in rows:
        row.staleness = ledger.late[row.rank] / max(1, ledger.entered[row.rank])
        row.dropped = dropped[row.rank]


class Record:
    """The folder, the display and the scores of an asynchronous run.

    Args:
        config: resolved.
        workload: its data.
        job: how the run is carried out.
        work: of this process, whose model is used to evaluate.
        held: another process holds the run's folder, which is there.
    """

    def __init__(
        self, config: Config, workload: Workload, job: Job, work: LocalSteps, *, held: bool = False
    ) -> None:
        self._config, self._workload, self._work = config, workload, work
        self._folder: RunFolder | None = None
        if job.keep:
            self._folder = RunFolder(job.out or new_folder(config), resume=job.resume, held=held)
        path = self._folder.path if self._folder else None
        self.logger = RunLogger(path, self._folder, config.title, job)
        self.logger.lead()
        self.saver = Saver(path / "checkpoints") if path else None
        self._model = copy.deepcopy(work.model)
        self._flat = Flat(self._model)
        self.scores: dict[str, float] = {}

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        assert self.logger.path
        return self.logger.path / "checkpoints"

    def look(self, step: int, rounds: int, workers: Sequence[WorkDone]) -> None:
        """Record and show how far the run is."""
        losses, rows = self._work.losses, [dataclasses.asdict(worker) for worker in workers]
        self.logger.record(kind="look", step=step, losses=[*losses], by_worker=rows)
        steps, sent = self._config.training.steps, self._bytes(workers[0])
        self.logger.show(Progress(step, steps, [*losses], rounds, sent, self.scores, by_worker=[*workers]))

    def save(self, step: int, state: Mapping[str, Any]) -> None:
        """Write a checkpoint, in the background; one that fails does not stop the training."""
        if self.saver:
            try:
                self.saver.start(step, {**state, "losses": self._work.losses, "scores": self.scores}, 0, 1)
                self.saver.prune(self.saver.done)
            except CheckpointError as error:
                self.logger.complain(error)

    def resume_hint(self) -> str:
        """Wait for the checkpoint; return how to go on from it, for the end of a message."""
        if not self.saver:
            return ""
        self.saver.settle()
        return self.logger.resume_hint()

    def close(self) -> None:
        """Release the folder and the terminal."""
        self.logger.close()

    def evaluate(self, x: Tensor, step: int, seconds: float, workers: Sequence[WorkDone]) -> None:
        """Evaluate a model [P] and record it."""
        self._flat.write(x)
        sets = {"validation": self._work.feed(0).validation, "test": self._workload.test}
        for name, examples in sets.items():
            score = evaluate(self._model, self._workload, examples).score
            self.scores |= named_scores(self._workload, name, score)
        sent = sum(map(self._bytes, workers)) / len(workers)
        self.logger.record(kind="evaluation", step=step, seconds=seconds, bytes_sent=sent, **self.scores)

    def _bytes(self, worker: WorkDone) -> int:
        """Return what a worker has sent: a vector of weights for each job."""
        return worker.steps // self._work.steps * self._work.x.nbytes

    def end(
        self, x: Tensor, step: int, rounds: int, seconds: float, workers: Sequence[WorkDone]
    ) -> dict[str, Any]:
        """Evaluate the result, write it down, and return the summary."""
        self.evaluate(x, step, seconds, workers)
        self.logger.record(kind="trace", step=step, folded=[])  # no rounds
        sent = sum(map(self._bytes, workers)) / len(workers)
        known = [loss for loss in self._work.losses if not math.isnan(loss)]
        summary = {
            **dataclasses.asdict(self._config),
            **self.scores,
            "train_loss": sum(known) / len(known) if known else math.nan,
            "rounds": rounds,
            "bytes_sent_per_worker": sent,
            "bytes_received_per_worker": sent,
            "seconds": seconds,
            "compute_seconds": sum(worker.compute_seconds for worker in workers) / len(workers),
            "sync_seconds": sum(worker.wait_seconds for worker in workers) / len(workers),
            "probe_seconds": 0.0,
            "distrusted": [],
            "parameters": self._flat.layout.parameters,
            "corpus": self._workload.corpus,
            "metric": next(iter(self._workload.metrics), None),
            "steps_taken": step,
            "by_worker": [dataclasses.asdict(worker) for worker in workers],
            "out": str(self.logger.path) if self.logger.path else None,
        }
        self.logger.end(build_modifiers(self._config).finished(bare(self._model)), summary)
        return summary
