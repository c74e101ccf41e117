"""From the command line to a run: in this process, as one of many workers, or as the process that starts them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from swarmstep import tracking
from swarmstep.errors import UsageError
from swarmstep.train import join, shared_store, start_workers, worker_process
from swarmstep.train.build import resolve
from swarmstep.train.config import FREE, Config, Invocation
from swarmstep.train.environment import started_as, threads
from swarmstep.train.in_process import simulated
from swarmstep.train.job import Job
from swarmstep.train.resume import check_steps
from swarmstep.train.run_folder import read_config
from swarmstep.workloads import BUILT_IN, Workload, load


class Session:
    """One call of ``swarmstep train``.

    Args:
        given: the fields of Config that the user gave.
        call: the other options.
        stopping: returns whether the user asked to stop.

    Attributes:
        given: with what follows from how this process was started.
        typed: what the user gave.

    Raises:
        UsageError: options do not go together, or with how this process was started.
        CheckpointError: the run to resume cannot be read.
    """

    def __init__(self, given: dict[str, Any], call: Invocation, stopping: Callable[[], bool]) -> None:
        self.given, self.typed, self.call = {**given}, given, call
        if not call.resume and "workload" not in given:
            names = ", ".join(BUILT_IN)
            raise UsageError(f"expected a WORKLOAD ({names}, path/to/file.py:workload) or --resume DIR")
        self.started = started_as()
        mode = given.get("elastic") or ("local" if call.join else None)
        if call.resume and self.started.group_size is None:
            mode = mode or read_config(Path(call.resume), done=True).elastic
        self.is_member = mode in ("local", "torchft") and self.started.worker is not None
        self.is_node = not mode and self.started.worker is not None  # of an asynchronous run
        self.is_worker = self.started.group_size is not None or self.is_member or self.is_node
        self._check_addresses(mode)
        if mode:
            self._check_elastic(mode)
        if self.started.group_size is not None:
            self._fit_to_group(self.started.group_size)
        folder = call.resume or call.out
        self.job = Job(
            out=Path(folder) if folder else None,
            resume=bool(call.resume),
            stopping=stopping,
            stop_at=call.stop_at,
            keep=not call.no_files,
            pace=call.pace,
            track=tracking.named(call.track) if call.track else (),
        )
        torch.set_num_threads(threads())

    def _fit_to_group(self, size: int) -> None:
        workers = self.given.get("workers", size)
        if workers != size:
            raise UsageError(f"--workers {workers}: expected {size}, the processes that were started")
        if self.given.get("backend") == "sim":
            raise UsageError("--backend sim: expected gloo or nccl, since these are real processes")
        self.given.setdefault("backend", "nccl" if torch.cuda.is_available() else "gloo")
        self.given["workers"] = size

    def _check_elastic(self, mode: str) -> None:
        self.given["elastic"] = mode
        in_group = self.started.group_size is not None
        if mode == "torchrun":
            if not (in_group and self.call.out):
                raise UsageError(
                    "--elastic torchrun: expected to be started by torchrun, and --out DIR to go on from"
                )
            return
        if in_group:
            raise UsageError(f"--elastic {mode} starts its own workers; under torchrun give --elastic torchrun")
        if self.call.stop_at is not None:
            raise UsageError(f"--stop-at: does not go with --elastic {mode}; Ctrl-C stops it after a round")
        self.given.setdefault("backend", "gloo")

    def _check_addresses(self, mode: str | None) -> None:
        if self.call.store:
            if mode != "local":
                raise UsageError(f"--store: expected --elastic local, found {mode or 'none'}")
            shared_store.etcd_at(self.call.store)
        for option, text in (("--listen", self.call.listen), ("--join", self.call.join)):
            if not text:
                continue
            asynchronous = option == "--listen" and self.config(done=True).asynchronous
            if not asynchronous and mode not in ("local", "torchft"):
                raise UsageError(
                    f"{option}: expected --elastic local or an asynchronous method, found {mode or 'none'}"
                )
            join.address(option, text)
            join.needed_secret(option)

    @property
    def starts_processes(self) -> bool:
        """Whether this call starts worker processes."""
        return not self.is_worker and self.config().backend != "sim"

    def config(self, *, done: bool = False) -> Config:
        """Return the config, not yet resolved: the user's, or that of the run to resume.

        Args:
            done: the run to resume may be done.

        Raises:
            UsageError: an option is not that of the run to resume, or it cannot go on to so many steps.
            CheckpointError: the run to resume cannot be read.
        """
        if not self.call.resume:
            return Config(**self.given)
        folder = Path(self.call.resume)
        config = read_config(folder, done=done or "steps" in self.given)
        for name, value in self.given.items():
            if name not in FREE and getattr(config, name) != value:
                raise UsageError(
                    f"{join.option_of(name)} {value}: the run to resume has {getattr(config, name)}; leave the "
                    "option out, or start a new run"
                )
        if "steps" in self.given and not done and not config.layerwise:
            check_steps(config, self.given["steps"], folder)
        return dataclasses.replace(config, **{name: self.given[name] for name in FREE if name in self.given})

    def ready(self, config: Config) -> tuple[Config, Workload]:
        """Return the resolved config and its workload."""
        workload = load(config.workload, Path(config.data) if config.data else None)
        return resolve(config, workload), workload

    def own_workload(self) -> Workload:
        """Return the workload of a machine that joins a run, with its own data."""
        data = self.given.get("data")
        return load(self.given["workload"], Path(data) if data else None)

    def simulate(self) -> dict[str, Any]:
        """Run all workers in this process and return the summary."""
        return simulated(*self.ready(self.config()), self.job)

    def launch(self, arguments: Sequence[str]) -> int:
        """Check everything once, start the workers as processes, and return the exit code of the run.

        Args:
            arguments: of the command line, for the workers.
        """
        return start_workers.join(self, arguments) if self.call.join else start_workers.start(self, arguments)

    def work(self) -> dict[str, Any] | None:
        """Be one of the workers; one of them returns the summary: rank 0, or whoever has taken its place."""
        if self.is_node:
            return worker_process.as_node(self)
        return worker_process.as_member(self) if self.is_member else worker_process.in_group(self)
