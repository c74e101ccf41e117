"""A run that is trained layer by layer, in one process or in many."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from swarmstep.checkpoint import loader
from swarmstep.checkpoint.fields import field
from swarmstep.checkpoint.saver import Saver
from swarmstep.comm.group import Group
from swarmstep.comm.sim import simulate
from swarmstep.data import sharding
from swarmstep.data.sharding import hold_out
from swarmstep.errors import CheckpointError, Interrupted
from swarmstep.layerwise import Builder, Layer, parse
from swarmstep.train.config import Config
from swarmstep.train.evaluate import evaluate_together, named_scores
from swarmstep.train.job import Job
from swarmstep.train.layerwise.options import build_settings
from swarmstep.train.lockstep_coordinator import open_logger
from swarmstep.train.progress import Progress
from swarmstep.train.run_logger import RunLogger
from swarmstep.workloads import Examples, Workload


def simulated(config: Config, workload: Workload, job: Job) -> dict[str, Any]:
    """Run all workers inside this process and return the summary."""
    return simulate(lambda comm: run(config, workload, comm, job), config.workers)[0]


def run(config: Config, workload: Workload, comm: Group, job: Job) -> dict[str, Any]:
    """Be one worker of a run and return its summary.

    Args:
        config: resolved; the same on all ranks.
        workload: its data.
        comm: the group, of `config.workers`.
        job: how to carry it out; its steps are the hidden layers.

    Raises:
        Interrupted: somebody asked to stop; all ranks stopped after the same layer and wrote a checkpoint.
        SwarmstepError: as the parts of a run say.
    """
    logger = open_logger(config, comm, job)
    try:
        return _Run(config, workload, comm, job, logger).run()
    finally:
        logger.close()


class _Run:
    """One worker: its examples, the network as it grows, and what has been measured."""

    def __init__(self, config: Config, workload: Workload, comm: Group, job: Job, logger: RunLogger) -> None:
        self._config, self._workload, self._comm, self._job, self._logger = config, workload, comm, job, logger
        self._settings = build_settings(config)
        self._saver = Saver(logger.path / "checkpoints") if logger.path else None
        held = hold_out(len(workload.train), config.seed)
        self._validation = workload.train.take(held.validation)
        targets, classes = workload.train.targets[held.train], workload.classes or 0
        shards = sharding.shard(targets, config.shards, config.workers, config.seed, classes, held.train)
        own = shards[comm.rank]
        self._targets = own.targets
        self._builder = Builder(
            self._settings,
            workload.prepare(workload.train.inputs[held.train[own.indices]]).flatten(1),
            one_hot(own.targets, classes),
            comm,
            parse(config.graph, config.workers) if config.graph else None,
            config.seed,
        )
        self._scores: dict[str, float] = {}
        self._seconds = 0.0

    @property
    def _taken(self) -> int:
        """How many hidden layers there are."""
        return max(0, len(self._builder.layers) - 1)

    def run(self) -> dict[str, Any]:
        """Add layers until the network is done; return the summary."""
        if self._job.resume:
            self._load()
        self._job.check_stop_at(self._taken, self._settings.layers)
        self._logger.begin(self._config)
        while not self._builder.done:
            began = self._comm.clock()
            first = not self._builder.layers
            layers = [self._builder.add() for _ in range(1 + first)]
            self._seconds += self._comm.clock() - began
            self._added(layers)
        return self._end()

    def _added(self, layers: list[Layer]) -> None:
        """Evaluate, record and save what is new, and stop where that is due; the same on all ranks."""
        step, job = self._taken, self._job
        self._evaluate()
        for layer in layers:
            self._logger.record(kind="layer", step=step, **dataclasses.asdict(layer))
        stop = self._comm.gather(torch.tensor(job.stopping() or job.stop_at == step)).any()
        if self._builder.done:
            return
        if self._saver:
            own = {"scores": self._scores, "seconds": [self._seconds, self._builder.sync_seconds]}
            self._saver.start(step, {**self._builder.state_dict(), **own}, self._comm.rank, self._comm.size)
            try:
                self._saver.agree(self._comm)
            except CheckpointError as error:  # on all ranks
                self._logger.complain(error)
        if stop:
            hint = self._logger.resume_hint() if self._saver else ""
            raise Interrupted(f"stopped after layer {step}, on all ranks{hint}")

    def _load(self) -> None:
        """Go on from the newest checkpoint, if there is one."""
        assert self._logger.path
        folder = self._logger.path / "checkpoints"
        if not self._comm.gather(torch.tensor(folder.is_dir())).any():
            self._logger.rewind(0)
            return
        state = loader.load(folder, self._comm)
        self._builder.load_state_dict(state)
        self._scores = field(state, "scores")
        self._seconds, self._builder.sync_seconds = field(state, "seconds")
        self._logger.rewind(self._taken)

    def _mean(self, values: Tensor) -> float:
        """Return the mean over all workers' examples of what each worker has summed up."""
        return float(self._comm.gather(values.double()).sum()) / self._builder.examples

    def _evaluate(self) -> None:
        """Measure the network on all three sets, and record and show it."""
        network, workload = self._builder.network(), self._workload
        outputs = self._builder.outputs_of_own()
        self._scores = {"train_loss": self._mean(workload.loss(outputs, self._targets) * len(self._targets))}
        for name, examples in (("validation", self._validation), ("test", workload.test)):
            self._scores |= self._score(network, name, examples)
        sent, seconds = self._totals["bytes_sent_per_worker"], self._seconds
        self._logger.record(kind="evaluation", step=self._taken, seconds=seconds, bytes_sent=sent, **self._scores)
        shown = {name: score for name, score in self._scores.items() if name != "train_loss"}
        losses = [self._scores["train_loss"]]
        self._logger.show(Progress(self._taken, self._settings.layers, losses, self._rounds, round(sent), shown))

    def _score(self, network: torch.nn.Module, name: str, examples: Examples) -> Mapping[str, float]:
        score = evaluate_together(network, self._workload, examples, self._comm, identical=True)
        return named_scores(self._workload, name, score)

    @property
    def _rounds(self) -> int:
        """How often all have agreed on a matrix: in each iteration of ADMM, or once for a layer."""
        return sum(layer.iterations or 1 for layer in self._builder.layers)

    @property
    def _totals(self) -> dict[str, float]:
        """Bytes of this run, a mean over the workers. Collective."""
        layers = self._builder.layers
        own = [sum(layer.bytes_sent for layer in layers), sum(layer.bytes_received for layer in layers)]
        sent, received = self._comm.gather(torch.tensor(own, dtype=torch.float64)).mean(0).tolist()
        return {"bytes_sent_per_worker": sent, "bytes_received_per_worker": received}

    def _end(self) -> dict[str, Any]:
        """Write down the result and return the summary."""
        network, builder = self._builder.network(), self._builder
        own = torch.tensor([self._seconds, builder.sync_seconds], dtype=torch.float64)
        seconds, synchronizing = self._comm.gather(own).mean(0).tolist()
        summary = {
            **dataclasses.asdict(self._config),
            **self._scores,
            "rounds": self._rounds,
            **self._totals,
            "seconds": seconds,
            "compute_seconds": max(0.0, seconds - synchronizing),
            "sync_seconds": synchronizing,
            "probe_seconds": 0.0,
            "distrusted": [],
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
            "corpus": self._workload.corpus,
            "steps_taken": self._taken,
            "by_worker": [],
            "layers": [dataclasses.asdict(layer) for layer in builder.layers],
            "nodes": [layer.nodes for layer in builder.layers[1:]],
            "spread": builder.spread(),
            "out": str(self._logger.path) if self._logger.path else None,
        }
        self._logger.end(network, summary)
        return summary
