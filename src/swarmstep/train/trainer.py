"""One worker of a run: takes local steps and lets its Synchronizer take the rounds; the same code everywhere."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any

import torch
from torch import Tensor

from swarmstep.comm.group import Group
from swarmstep.network.trace import Trace
from swarmstep.runtime.flat import Flat
from swarmstep.runtime.options import Options
from swarmstep.runtime.synchronizer import Synchronizer
from swarmstep.seeding import mix, seed_torch
from swarmstep.signal import Event, MembershipChange, Round
from swarmstep.train.build import build_options, build_strategy, optimizer_rule
from swarmstep.train.config import DDP, Config
from swarmstep.train.coordinator import Coordinator
from swarmstep.train.ddp import DataParallel
from swarmstep.train.evaluate import Score, named_scores
from swarmstep.train.faults import FaultInjector
from swarmstep.train.feed import Feed
from swarmstep.train.job import Job
from swarmstep.train.local_step import build_model, clip_gradient, learning_rate, measure_loss
from swarmstep.train.model_file import check_extra_state
from swarmstep.train.modifiers import build_modifiers
from swarmstep.train.optimizer import build_optimizer
from swarmstep.train.pace import Pace, slot_of
from swarmstep.train.progress import Progress, describe_distrust
from swarmstep.train.tally import Tally
from swarmstep.train.timed_share import TimedShare
from swarmstep.train.work_done import WorkDone
from swarmstep.train.work_share import WorkShare
from swarmstep.workloads import Examples, Workload


class Trainer:
    """One worker of a run: its model, optimizer, Synchronizer and data, and what it has counted.

    What goes on outside of the rounds (who evaluates and saves when, how one stops) is its coordinator's.

    Args:
        config: resolved; the same on all ranks.
        workload: its data.
        comm: the group; of `config.workers`, unless it is elastic.
        job: how the run is carried out.
        fault: what goes wrong with this worker, already listening at the fault points (None: nothing).

    Attributes:
        scores: of the latest evaluation, by name: "test_accuracy", say.
        spare: a second model like the trained one, to evaluate other weights than this worker's own.
    """

    def __init__(
        self, config: Config, workload: Workload, comm: Group, job: Job, fault: FaultInjector | None
    ) -> None:
        self.config, self.workload, self.job, self.fault = config, workload, job, fault
        self.steps = config.training.steps
        self.device = torch.device("cuda" if config.backend == "nccl" else "cpu")
        self.tally, self.trace = Tally(), Trace()
        self.scores: dict[str, float] = {}
        self.feed = Feed(config, workload, comm.rank, self.device, members=comm.size if comm.elastic else 0)
        seed_torch(mix(config.seed, "model"), self.device)
        self.model = build_model(config, workload).to(self.device)
        self.modifiers = build_modifiers(config)
        check_extra_state(self.model)
        self.optimizer = build_optimizer(self.model, config)
        self.spare = copy.deepcopy(self.model)
        self.strategy = build_strategy(config)
        self.sync = Synchronizer(self.model, self.strategy, comm, self._options())
        self._ddp = DataParallel(self.model, comm) if config.strategy == DDP else None
        self.share = (TimedShare if config.balance == "time" else WorkShare)(config, self.sync)
        if comm.elastic and not self.sync.comm.sources:
            self.feed.share_out(0, self.share.dealt)
        self._pace = Pace(config, slot_of(comm), job.pace)

    @property
    def taken(self) -> int:
        """The run's steps that all workers have taken; this worker's own, but with --balance steps."""
        return self.share.taken

    @property
    def rounds(self) -> int:
        """How many rounds of the run have landed; with DDP each step is one."""
        return self.sync.steps if self._ddp else self.sync.rounds

    def _options(self) -> Options:
        return dataclasses.replace(
            build_options(self.config),
            probe=self.feed.probe,
            probe_cost=self.feed.probe_cost,
            optimizer_state=optimizer_rule(self.config),
            optimizers=self.optimizer.parts,
            stateful={"optimizer": self.optimizer, "feed": self.feed, "trainer": self},
        )

    def state_dict(self) -> dict[str, Any]:
        """Return what has been counted and measured, for a checkpoint and for a newcomer."""
        return {
            "tally": dataclasses.asdict(self.tally),
            "trace": copy.deepcopy(self.trace.folded),
            "scores": dict(self.scores),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Count on from a `state_dict`."""
        self.tally, self.trace = Tally(**state["tally"]), Trace(state["trace"])
        self.scores = dict(state["scores"])

    def checkpoint(self) -> dict[str, Any]:
        """Return all that this worker needs to go on; waits for the round under way."""
        return {
            "config": dataclasses.asdict(self.config),
            "corpus": self.workload.corpus,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "sync": self.sync.state_dict(),
            "feed": self.feed.state_dict(),
            "share": self.share.state_dict(),
            "trainer": self.state_dict(),
            "fault": self.fault.state_dict() if self.fault else {},
        }

    def train(self, coordinator: Coordinator) -> dict[str, Any] | None:
        """Take all steps and return the summary; None where another worker returns it.

        Raises:
            Interrupted: somebody asked to stop.
            SwarmstepError: as the parts of a run say.
        """
        with self.sync:  # whatever ends it has an error of its own
            coordinator.begin()
            self._note(self._events(None), coordinator)
            while self.taken < self.steps and coordinator.wants_step():
                with self.timed():
                    loss, events = self._take_step(self.tally.steps + 1)
                coordinator.after_step(loss, self._note(events, coordinator))
            with self.timed():
                events = self.sync.finish()
                if self._ddp:
                    self._ddp.finish()
        self._note(events, coordinator)
        return coordinator.conclude()

    def done(self) -> list[float]:
        """Return what this worker has done, as `Tally.done` does."""
        return self.tally.done(timed=self._pace.virtual or self.config.backend != "sim")

    @contextlib.contextmanager
    def timed(self) -> Generator[None]:
        """Count what is done within as training."""
        clock = self.sync.comm.clock if self._pace.virtual else time.perf_counter
        started = clock()
        yield
        self.tally.seconds += clock() - started

    def _take_step(self, step: int) -> tuple[Tensor, list[Event]]:
        """Take a local step and what is due of rounds; return the step's loss, and what has happened."""
        comm = self.sync.comm
        began = comm.clock()
        seed_torch(mix(self.config.seed, step, comm.rank), self.device)  # dropout: a stop changes nothing
        inputs, targets = self.feed.batch(step, self.share.places, self.share.step)
        lr = learning_rate(self.config, self.share.step)
        weight = self.share.weight if self.feed.counts else 0.0
        self.model.train()
        outputs = (self._ddp.module if self._ddp else self.model)(inputs)
        loss = measure_loss(self.model, self.workload, outputs, targets)
        self.optimizer.zero_grad()
        loss.backward()
        self._pace.wait(self.tally.seconds, began, step, len(targets), comm)
        computed = comm.clock()
        self.sync.reduce(lr, weight)
        reducing = comm.clock() - computed
        clip_gradient(self.model, self.config)
        self.optimizer.step(lr)
        if self.fault:
            self.fault.after_step(self.model, step)
        spent = comm.clock() - began - reducing
        self.tally.compute_seconds += spent
        self.tally.steps += 1
        told = spent if self.share.balanced and comm.elastic else None
        event = self.sync.step(loss, lr, weight, told) or (self._ddp.report(step) if self._ddp else None)
        landed = comm.clock()
        self.modifiers.after_step(self.model, lr, step)
        after = comm.clock() - landed
        self.tally.compute_seconds += after
        self.share.worked(spent + after)
        return loss.detach(), self._events(event)

    def _events(self, first: Event | None) -> list[Event]:
        """Return `first`, if there is one, and whatever else has happened in the Synchronizer."""
        return [*([first] if first else []), *self.sync.events()]

    def _note(self, events: list[Event], coordinator: Coordinator) -> list[Round]:
        """Take note of what has happened, and return the rounds of it."""
        name, own = self._name, list[Round]()
        for event in events:
            if isinstance(event, MembershipChange):
                self.share.regroup(event)
                self.feed.deal(event, self.share.dealt)
                coordinator.membership_changed(event)
                continue
            self.share.landed(event)
            self.optimizer.landed()
            if self.sync.comm.elastic:
                self.feed.share_out(event.step, self.share.dealt)
            if not name or name in event.members:  # else it was before this worker came
                report = dataclasses.replace(event, step=self.taken) if self.share.uneven else event
                own.append(report)
                self.tally.add_round(report, self.sync.comm.rank)
                if report.followed:
                    self.trace.add(report.step - 1, self.taken, report.followed)
                self.trace.add(report.step, self.taken, report.calls)
                coordinator.round_landed(report)
        return own

    @property
    def _name(self) -> str:
        """This worker's, in an elastic run."""
        comm = self.sync.comm
        return comm.names[comm.rank] if comm.names else ""

    def evaluate(self, evaluate: Callable[[Examples], Score]) -> None:
        """Update `scores` on the validation and the test set by `evaluate`."""
        for name, examples in (("validation", self.feed.validation), ("test", self.workload.test)):
            self.scores |= named_scores(self.workload, name, evaluate(examples))

    def progress(self, losses: list[float], by_worker: Sequence[WorkDone] = ()) -> Progress:
        """Return how far this worker is.

        Args:
            losses: the latest of all workers, in rank order.
            by_worker: what each has done, where that is known.
        """
        tally = self.tally
        return Progress(
            self.taken,
            self.steps,
            losses,
            self.rounds,
            tally.bytes_sent,
            self.scores,
            [describe_distrust(worker) for worker in tally.distrusted],
            [*by_worker],
        )

    def summary(self, means: dict[str, float], by_worker: Sequence[WorkDone], out: str | None) -> dict[str, Any]:
        """Return the summary of the run: its config, how good the model is, and what it took.

        Args:
            means: of the workers' figures, as `Tally.means` returns them.
            by_worker: what each has done; empty where that is not known.
            out: the run's folder.
        """
        return {
            **dataclasses.asdict(self.config),
            **self.scores,
            "train_loss": self.tally.train_loss,
            "rounds": self.rounds,
            "bytes_sent_per_worker": means["bytes_sent"],
            "bytes_received_per_worker": means["bytes_received"],
            **{name: value for name, value in means.items() if name.endswith("seconds")},
            "distrusted": self.tally.distrusted,
            "parameters": Flat(self.model).layout.parameters,
            "corpus": self.workload.corpus,
            "metric": next(iter(self.workload.metrics), None),
            "steps_taken": self.taken,
            "by_worker": [dataclasses.asdict(worker) for worker in by_worker],
            **({"shares": list(self.share.shares)} if self.share.balanced else {}),
            **self.modifiers.metrics(self.model),
            "out": out,
        }
