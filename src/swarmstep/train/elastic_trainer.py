"""One worker of an elastic run: the others come and go, and what happens outside the rounds needs nobody."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import shlex
import time
from typing import Any

import torch
from torch import Tensor

from swarmstep import fault_points
from swarmstep.checkpoint import loader, saver
from swarmstep.elastic.membership import Membership
from swarmstep.errors import CheckpointError, CommError, Interrupted, RunOver
from swarmstep.runtime.flat import Flat
from swarmstep.runtime.options import Change
from swarmstep.runtime.synchronizer import Synchronizer
from swarmstep.seeding import mix, seed_torch
from swarmstep.signal import Round
from swarmstep.train import faults
from swarmstep.train.build import build_options, build_strategy
from swarmstep.train.config import Config
from swarmstep.train.evaluate import evaluate
from swarmstep.train.events import Events, shared_print
from swarmstep.train.feed import Feed
from swarmstep.train.job import Job, Tally
from swarmstep.train.local_step import build_model, build_optimizer, learning_rate, measure_loss
from swarmstep.train.progress import Progress, View, choose_view
from swarmstep.train.resume import restore
from swarmstep.train.run_folder import RunFolder
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
    with contextlib.ExitStack() as stack:
        stack.callback(membership.leave)
        stack.enter_context(contextlib.suppress(RunOver))  # the others need this one no more
        slot = int(membership.name.partition(".")[0])
        fault = faults.injector(config.fault, config.workers, config.seed, slot)
        if fault:
            stack.enter_context(fault_points.interfering(fault))
        member = _Member(config, workload, membership, job, fault)
        stack.callback(lambda: member.view.close())
        return member.train()
    return None


class _Member:
    """One worker of an elastic run, from its first group to the end of the run.

    Losses, checkpoints, evaluations and the summary are local to a worker: only rounds need the others, so only a
    round can fail, and it is done again. The first rank writes and shows what there is to write and to show.
    """

    def __init__(
        self,
        config: Config,
        workload: Workload,
        membership: Membership,
        job: Job,
        fault: faults.FaultInjector | None,
    ) -> None:
        self.config, self.workload, self.job, self.membership = config, workload, job, membership
        self.view = View()
        self.events = Events(job.out, membership.name)
        self.folder = RunFolder(job.out, resume=True, held=True) if job.out else None
        self.saver = saver.Saver(job.out / "checkpoints") if job.out else None
        self.tally = Tally()
        self.before = 0  # the step of the round before the one that has landed last; the same on all members
        self.scores: dict[str, float] = {}
        self.over = self.writing = False
        self.fault = fault
        began = time.monotonic()
        comm = membership.join()
        self.feed = Feed(config, workload, comm.rank, torch.device("cpu"), members=comm.size)
        seed_torch(mix(config.seed, "model"), torch.device("cpu"))
        self.model = build_model(config, workload)
        self.optimizer = build_optimizer(self.model, config)
        self.judge = copy.deepcopy(self.model)
        options = dataclasses.replace(
            build_options(config),
            probe=self.feed.probe,
            probe_cost=self.feed.probe_cost,
            stateful={"optimizer": self.optimizer, "feed": self.feed, "member": self},
            changed=self._changed,
        )
        self.sync = Synchronizer(self.model, build_strategy(config), comm, options)
        if not comm.sources:
            self._begin(began)
        self._choose_view()

    def _begin(self, began: float) -> None:
        """Begin with all others: from the newest checkpoint, if there is one."""
        step, states = 0, list[dict[str, Any]]()
        if self.job.out:
            where = self.job.out / "checkpoints"
            try:
                step, states = loader.load_any(where)
            except CheckpointError:  # else they were all lost before the first one, and begin at the beginning
                if self.job.resume:
                    raise
            if len({*self.sync.comm.gather(torch.tensor(step)).tolist()}) > 1:
                raise CheckpointError(f"{where}: the workers see different checkpoints; put it where all see one")
        if states:
            all_states = dict(enumerate(states))
            state = restore(self.config, all_states, self.model, self.optimizer, self.sync, self.feed)
            self.load_state_dict(state["member"])
            if self.fault and self.sync.comm.rank in all_states:
                self.fault.load_state_dict(state["fault"])
            self.before = self.sync.committed
        if self.folder and self.sync.comm.rank == 0:
            self.folder.rewind(self.sync.steps)
            self.folder.write_settings(self.config)
        self._note_joined(self.sync.change(seconds=time.monotonic() - began))

    def state_dict(self) -> dict[str, Any]:
        """Return what is counted and found, the same on all members."""
        return {"scores": self.scores}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Count on from where another member is."""
        self.scores = dict(state["scores"])

    def _changed(self, change: Change) -> None:
        self.feed.deal(change)
        if change.newcomer:
            self.before = change.committed
        self._note_joined(change)

    def _note_joined(self, change: Change) -> None:
        self.events.write(
            "joined",
            epoch=self.membership.epoch,
            round=change.rounds,
            step=change.step,
            members=list(change.names),
            newcomer=change.newcomer,
            seconds=change.seconds,
            print=shared_print(change.states),
        )

    def _choose_view(self) -> None:
        """Show how the run goes on, if this worker has become the first."""
        if self.sync.comm.rank == 0 and type(self.view) is View and not self.job.quiet:
            self.view = choose_view(0, f"{self.config.workload} {self.config.strategy}, elastic")

    def train(self) -> dict[str, Any] | None:
        """Take all steps; return the summary where this worker concludes the run."""
        self._follow([])
        while self.sync.steps < self.config.training.steps and not self.over:
            if self.job.stopping():
                raise CommError(f"worker {self.membership.name} was asked to leave; the others go on")
            self._step(self.sync.steps + 1)
        for report in self.sync.finish():
            self._note_round(report)
        self.membership.end()
        if self.saver:
            self._settle()
        summary = self.membership.conclude(self._summarize)
        self.events.write("done", step=self.sync.steps, round=self.sync.rounds, **self._result(summary))
        return summary

    def _result(self, summary: dict[str, Any] | None) -> dict[str, Any]:
        return {"loss": summary["test_loss"], "accuracy": summary["test_accuracy"]} if summary else {}

    def _step(self, step: int) -> None:
        began = time.monotonic()
        seed_torch(mix(self.config.seed, step, self.sync.comm.rank), torch.device("cpu"))
        inputs, targets = self.feed.batch(step)
        lr = learning_rate(self.config, step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.model.train()
        loss = measure_loss(self.workload, self.model(inputs), targets)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        if self.fault:
            self.fault.after_step(self.model, step)
        time.sleep(max(0.0, began + self.job.pace - time.monotonic()))
        self.tally.compute_seconds += time.monotonic() - began
        report = self.sync.step(loss, lr)
        self.tally.seconds += time.monotonic() - began
        self._follow([report] if report else [])

    def _follow(self, landed: list[Round]) -> None:
        """Do what follows from the rounds that have landed."""
        for report in [*landed, *self.sync.landed()]:
            self._note_round(report)
            self._after_round(report)

    def _note_round(self, report: Round) -> None:
        self.tally.add_round(report.bytes_sent, report.bytes_received, report.seconds)
        self.tally.probe_seconds += report.probe_seconds
        self.tally.distrusted = [dataclasses.asdict(worker) for worker in report.distrusted]
        if report.losses[self.sync.comm.rank] != report.losses[self.sync.comm.rank]:
            self.optimizer.state.clear()  # the weights are the others' by now; what is left of the old ones goes
        known = [loss for loss in report.losses if loss < float("inf")]
        self.tally.train_loss = sum(known) / len(known) if known else self.tally.train_loss
        self.events.write(
            "round",
            epoch=report.epoch,
            round=report.number,
            step=report.step,
            members=list(report.members),
            averaged=report.participants,
            loss=self.tally.train_loss,
            print=shared_print(self.sync.change(0.0).states) if report.epoch == self.membership.epoch else None,
        )
        if self.sync.comm.rank == 0 and self.folder:
            row = {**dataclasses.asdict(report), "fate": None}
            self.folder.append({"kind": "round", "landed": self.sync.steps, **row})

    def _after_round(self, report: Round) -> None:
        """Show, evaluate, save, and stop, each where it is due; the same on all members, and none waits."""
        self._choose_view()
        losses, tally = list(report.losses), self.tally
        words = [f"rank {d['rank']} since step {d['since']}: {d['why']}" for d in tally.distrusted]
        steps = self.config.training.steps
        self.view.show(
            Progress(self.sync.steps, steps, losses, self.sync.rounds, tally.bytes_sent, self.scores, words)
        )
        step = self.sync.steps
        due = {
            every: report.step // every > self.before // every
            for every in (self.config.training.eval_every, self.config.checkpoint_every)
        }
        self.before = max(self.before, report.step)  # a thawed worker may report an old one
        if due[self.config.training.eval_every]:
            self._evaluate(step)
        if self.saver and (report.fate.stop or due[self.config.checkpoint_every]):
            self._save(step)
        self.over = report.fate.finish
        if report.fate.stop:
            self._settle()
            self.membership.end()
            name = shlex.quote(str(self.job.out))
            saved = self.saver and self.saver.done == step
            where = f"; go on with: swarmstep train --resume {name}" if saved else "; no checkpoint was written"
            raise Interrupted(f"stopped at step {step} of {steps}, after a round{where}")

    def _evaluate(self, step: int) -> None:
        """Judge this worker's weights, on the first rank: asking for the result would need the others."""
        if self.sync.comm.rank == 0:
            self.scores = self._score(Flat(self.model).read())
            if self.folder:
                self.folder.append(
                    {"kind": "evaluation", "step": step, "seconds": self.tally.seconds, **self.scores}
                )

    def _score(self, x: Tensor) -> dict[str, float]:
        Flat(self.judge).write(x)
        scores: dict[str, float] = {}
        for name, examples in (("validation", self.feed.validation), ("test", self.workload.test)):
            score = evaluate(self.judge, self.workload, examples).score
            scores |= {f"{name}_loss": score.loss, f"{name}_accuracy": score.accuracy}
        return scores

    def _save(self, step: int) -> None:
        """Begin to write a checkpoint, and remove what all members have newer ones of."""
        assert self.saver
        self._settle()
        comm = self.sync.comm
        self.saver.prune(self.membership.saved_by_all(self.saver.done))
        try:
            sync = self.sync.state_dict()
        except CommError:  # with a round under way, which has failed: the next one sees to it
            return
        state = {
            "config": dataclasses.asdict(self.config),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "sync": sync,
            "feed": self.feed.state_dict(),
            "member": self.state_dict(),
            "fault": self.fault.state_dict() if self.fault else {},
        }
        self.saver.start(step, state, comm.rank, comm.size, self.membership.mark)
        self.writing = True

    def _settle(self) -> None:
        """Wait for the checkpoint being written; one that fails does not stop the training."""
        if self.saver and self.writing:
            self.writing = False
            try:
                self.saver.settle()
                self.events.write("checkpoint", step=self.saver.done)
            except CheckpointError as error:
                self.events.write("checkpoint failed", why=str(error))

    def _summarize(self) -> dict[str, Any]:
        tally = self.tally
        scores = self._score(Flat(self.model).read())
        summary = {
            **dataclasses.asdict(self.config),
            **scores,
            "train_loss": tally.train_loss,
            "rounds": self.sync.rounds,
            "bytes_sent_per_worker": tally.bytes_sent,
            "bytes_received_per_worker": tally.bytes_received,
            "seconds": tally.seconds,
            "compute_seconds": tally.compute_seconds,
            "sync_seconds": tally.sync_seconds,
            "probe_seconds": tally.probe_seconds,
            "distrusted": tally.distrusted,
            "parameters": Flat(self.model).layout.parameters,
            "steps_taken": self.sync.steps,
            "out": str(self.job.out) if self.job.out else None,
        }
        if self.folder:
            self.folder.append({"kind": "evaluation", "step": self.sync.steps, "seconds": tally.seconds, **scores})
            self.folder.save_model(self.model)
            self.folder.write("summary.json", summary)
        return summary
