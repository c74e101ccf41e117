"""One run: W workers, each on its own shard, train one network; the same code in process and in real processes."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import shlex
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from swarmstep import fault_points
from swarmstep.checkpoint import loader, saver
from swarmstep.comm.group import Group
from swarmstep.comm.metered import Metered
from swarmstep.comm.sim import simulate
from swarmstep.errors import CheckpointError, Interrupted, UsageError
from swarmstep.network.trace import Trace
from swarmstep.runtime.flat import Flat
from swarmstep.runtime.synchronizer import Synchronizer
from swarmstep.seeding import mix, seed_torch
from swarmstep.signal import Round
from swarmstep.train import faults
from swarmstep.train.build import build_options, build_strategy
from swarmstep.train.config import Config
from swarmstep.train.evaluate import evaluate_together
from swarmstep.train.feed import Feed
from swarmstep.train.gradient_averaging import GradientAveraging
from swarmstep.train.job import Job, Tally
from swarmstep.train.local_step import build_model, build_optimizer, check_finite, learning_rate, measure_loss
from swarmstep.train.progress import Progress
from swarmstep.train.resume import restore
from swarmstep.train.run_logger import RunLogger
from swarmstep.workloads import Workload

CHECK_EVERY = 25  # steps between two looks of all ranks at each other: losses to show, a request to stop


def simulated(config: Config, workload: Workload, job: Job) -> dict[str, Any]:
    """Run all workers inside this process and return the summary."""
    return simulate(lambda comm: run(config, workload, comm, job), config.workers)[0]


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
    scribe = RunLogger(config, comm, job)
    try:
        fault = faults.injector(config.fault, config.workers, config.seed, comm.rank)
        with fault_points.interfering(fault) if fault else contextlib.nullcontext():
            return _Worker(config, workload, comm, job, scribe, fault).train()
    finally:
        scribe.close()


class _Worker:
    """One worker of one run."""

    def __init__(
        self,
        config: Config,
        workload: Workload,
        comm: Group,
        job: Job,
        scribe: RunLogger,
        fault: faults.FaultInjector | None,
    ) -> None:
        self.config, self.workload, self.comm, self.job, self.scribe = config, workload, comm, job, scribe
        self.steps = config.training.steps
        self.device = torch.device("cuda" if config.backend == "nccl" else "cpu")
        self.feed = Feed(config, workload, comm.rank, self.device)
        self.fault = fault
        self.strategy = build_strategy(config)
        seed_torch(mix(config.seed, "model"), self.device)
        self.model = build_model(config, workload).to(self.device)
        self.sync = Synchronizer(
            self.model,
            self.strategy,
            comm,
            dataclasses.replace(
                build_options(config),
                probe=self.feed.probe,
                probe_cost=self.feed.probe_cost,
            ),
        )
        self.averaging: GradientAveraging | None = None
        if config.averages_gradients:
            self.averaging = GradientAveraging(config, self.model, Metered(comm))
        self.optimizer = build_optimizer(self.model, config)
        self.saver = saver.Saver(scribe.path / "checkpoints") if scribe.path else None
        self.judge = copy.deepcopy(self.model)
        self.tally, self.trace = Tally(), Trace()
        self.window = torch.zeros((), device=self.device)  # sum of losses since the last look
        self.looked = 0  # the step of the last look
        self.judged = 0  # the step of the last evaluation
        self.sent = 0.0  # bytes, mean over the workers, at the last look
        self.scores: dict[str, float] = {}

    def train(self) -> dict[str, Any]:
        """Take all steps and return the summary."""
        if self.job.resume:
            self._load()
        self._check_stop()
        self.scribe.begin(self.config)
        while self.tally.step < self.steps and not self._reached():
            with self._timed():
                self._step(self.tally.step + 1)
            self._after_step()
        with self._timed():
            for report in self.sync.finish():
                self._note_round(report)
            if self.saver:
                self.saver.agree(self.comm)
            if self.averaging:
                check_finite(Flat(self.model).read(), "after the last step: the model", self.comm)
        return self._summarize()

    @contextlib.contextmanager
    def _timed(self) -> Generator[None]:
        """Count what is done within as training."""
        started = time.perf_counter()
        yield
        self.tally.seconds += time.perf_counter() - started

    def _step(self, step: int) -> None:
        config, model, began = self.config, self.model, self.comm.clock()
        due = time.monotonic() + self.job.pace
        seed_torch(mix(config.seed, step, self.comm.rank), self.device)  # dropout: a stop changes nothing
        inputs, targets = self.feed.batch(step)
        lr = learning_rate(config, step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        model.train()
        loss = measure_loss(
            self.workload, self.averaging.module(inputs) if self.averaging else model(inputs), targets
        )
        self.optimizer.zero_grad()
        spent = self._backward(loss, step)
        self.optimizer.step()
        if self.fault:
            self.fault.after_step(model, step)
        if self.job.pace:
            time.sleep(max(0.0, due - time.monotonic()))
        report = self.sync.step(loss, lr)
        self.window += loss.detach()
        self.tally.step = step
        if report:
            spent += report.seconds
            self._note_round(report)
        self.tally.compute_seconds += self.comm.clock() - began - spent

    def _backward(self, loss: Tensor, step: int) -> float:
        """Compute the gradients, averaged where the run does so; return the seconds that the averaging took."""
        if not self.averaging:
            loss.backward()
            return 0.0
        self.averaging.backward(loss)
        began = self.comm.clock()
        moved = self.averaging.share(step)
        spent = self.comm.clock() - began
        self.tally.add_round(moved.sent, moved.received, spent)
        self.trace.add(step, step, moved.calls)
        return spent

    def _note_round(self, report: Round) -> None:
        self.tally.add_round(report.bytes_sent, report.bytes_received, report.seconds)
        self.tally.probe_seconds += report.probe_seconds
        self.tally.distrusted = [dataclasses.asdict(worker) for worker in report.distrusted]
        self.trace.add(report.step, self.tally.step, report.calls)
        self.scribe.record(kind="round", landed=self.tally.step, **dataclasses.asdict(report))

    def _check_stop(self) -> None:
        first, at = self.tally.step + 1, self.job.stop_at
        if at is not None and not first <= at <= self.steps:
            raise UsageError(f"--stop-at: expected a step from {first} to {self.steps}, found {at}")

    def _after_step(self) -> None:
        """Look at the others, evaluate, save, and stop, each where it is due."""
        step, config = self.tally.step, self.config
        last = step == self.steps
        stop = step == self.job.stop_at
        judged = not last and self._evaluation_is_due()
        if step % CHECK_EVERY == 0 or last or judged:
            with self._timed():  # so that the slowest is waited for before an evaluation
                stop = self._look() or stop
        if last:
            return
        if judged:
            self._evaluate()
        if self.saver and (stop or step % config.checkpoint_every == 0):
            self._save()
        if stop:
            if self.saver:
                self.saver.agree(self.comm)
            name = shlex.quote(str(self.scribe.path))
            where = f"; go on with: swarmstep train --resume {name}" if self.scribe.path else ""
            raise Interrupted(f"stopped at step {step} of {self.steps}, on all ranks{where}")

    def _evaluation_is_due(self) -> bool:
        """Return whether to evaluate now: not while a round travels, which would have that time for nothing."""
        step, every = self.tally.step, self.config.training.eval_every
        due = step // every - self.judged // every
        return due > 1 or (due == 1 and not self.sync.under_way)

    def _look(self) -> bool:
        """Gather the losses, show them, and return whether any rank was asked to stop."""
        loss = float(self.window) / max(1, self.tally.step - self.looked)
        self.window.zero_()
        self.looked = self.tally.step
        said = [loss, self.job.stopping(), self.tally.bytes_sent]
        rows = self.comm.gather(torch.tensor(said, dtype=torch.float64))
        losses = rows[:, 0].tolist()
        self.sent = float(rows[:, 2].mean())
        self.tally.train_loss = sum(losses) / len(losses)
        self.scribe.record(kind="look", step=self.tally.step, losses=losses)
        sent, rounds = self.tally.bytes_sent, self.tally.rounds
        words = [f"rank {d['rank']} since step {d['since']}: {d['why']}" for d in self.tally.distrusted]
        self.scribe.show(Progress(self.tally.step, self.steps, losses, rounds, sent, self.scores, words))
        return bool(rows[:, 1].any())

    def _evaluate(self) -> None:
        self.judged = self.tally.step
        Flat(self.judge).write(self.sync.result())
        self._record_scores(self._score(self.judge))

    def _reached(self) -> bool:
        """Return whether the accuracy at which to end has been reached; the same on all ranks."""
        until = self.config.until_accuracy
        return until is not None and self.scores.get("test_accuracy", 0.0) >= until

    def _record_scores(self, scores: dict[str, float]) -> None:
        tally = self.tally
        self.scribe.record(
            kind="evaluation", step=tally.step, seconds=tally.seconds, bytes_sent=self.sent, **scores
        )

    def _score(self, model: nn.Module) -> dict[str, float]:
        for name, examples in (("validation", self.feed.validation), ("test", self.workload.test)):
            score = evaluate_together(model, self.workload, examples, self.comm, identical=self._identical())
            self.scores |= {f"{name}_loss": score.loss, f"{name}_accuracy": score.accuracy}
        return self.scores

    def _identical(self) -> bool:
        return self.strategy.one_result or self.averaging is not None

    def _save(self) -> None:
        assert self.saver
        self.saver.agree(self.comm)
        state = {
            "config": dataclasses.asdict(self.config),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "sync": self.sync.state_dict(),
            "feed": self.feed.state_dict(),
            "fault": self.fault.state_dict() if self.fault else {},
            "tally": dataclasses.asdict(self.tally),
            "window": self.window,
            "looked": self.looked,
            "judged": self.judged,
            "scores": self.scores,
            "trace": self.trace.folded,
        }
        self.saver.start(self.tally.step, state, self.comm.rank, self.comm.size)

    def _load(self) -> None:
        assert self.scribe.path
        where = self.scribe.path / "checkpoints"
        if self.config.elastic and not self.comm.gather(torch.tensor(where.is_dir())).any():
            self.scribe.rewind(0)  # it was lost before its first checkpoint
            return
        try:
            self._restore(self._saved_states(where))
        except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
            said = " ".join(str(error).split())  # the workload's code has changed since
            raise CheckpointError(f"{where}: does not fit this run: {said}; start a new one") from error
        self.scribe.rewind(self.tally.step)

    def _saved_states(self, where: Path) -> dict[int, dict[str, Any]]:
        """Return this worker's state, or those of all where the newest checkpoint is of another number of them."""
        try:
            return {self.comm.rank: loader.load(where, self.comm)}
        except CheckpointError:
            states = loader.load_any(where)[1]
            if len(states) == self.comm.size:
                raise
            return dict(enumerate(states))

    def _restore(self, states: dict[int, dict[str, Any]]) -> None:
        state = restore(self.config, states, self.model, self.optimizer, self.sync, self.feed)
        if self.fault and self.comm.rank in states:
            self.fault.load_state_dict(state["fault"])
        self.tally = Tally(**state["tally"])
        self.window.copy_(state["window"])
        self.looked, self.judged, self.scores = state["looked"], state["judged"], state["scores"]
        self.trace = Trace(state["trace"])

    def _summarize(self) -> dict[str, Any]:
        tally, config = self.tally, self.config
        counts = [tally.bytes_sent, tally.bytes_received, tally.sync_seconds, tally.probe_seconds]
        rows = self.comm.gather(torch.tensor(counts, dtype=torch.float64))
        self.sent, received, sync_seconds, probe_seconds = (rows.sum(dim=0) / self.comm.size).tolist()
        scores = self._score(self.model)
        self._record_scores(scores)
        summary = {
            **dataclasses.asdict(config),
            **scores,
            "train_loss": tally.train_loss,
            "rounds": tally.rounds,
            "bytes_sent_per_worker": self.sent,
            "bytes_received_per_worker": received,
            "seconds": tally.seconds,
            "compute_seconds": tally.compute_seconds,
            "sync_seconds": sync_seconds,
            "probe_seconds": probe_seconds,
            "distrusted": tally.distrusted,
            "parameters": Flat(self.model).layout.parameters,
            "steps_taken": tally.step,
            "out": str(self.scribe.path) if self.scribe.path else None,
        }
        self.scribe.record(kind="trace", step=tally.step, folded=self.trace.folded)
        self.scribe.end(self.model, summary)
        return summary
