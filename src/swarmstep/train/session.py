"""From the command line to a run: in this process, as one of many workers, or as the starter of many."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from swarmstep.comm.dist import DistComm
from swarmstep.comm.secure.auth import secret_of
from swarmstep.elastic import torchft
from swarmstep.elastic.membership import Membership
from swarmstep.errors import UsageError
from swarmstep.launch.processes import Place, launch
from swarmstep.train import elastic, join, lockstep
from swarmstep.train.build import resolve
from swarmstep.train.config import FREE, Config, Invocation
from swarmstep.train.job import Job
from swarmstep.train.rank_0 import from_rank_0
from swarmstep.train.run_folder import new_folder, read_config
from swarmstep.train.supervise import say, supervise
from swarmstep.workloads import Workload, load

SILENCE, MEMBER_SILENCE = 30.0, 5.0  # seconds; where a loss ends the run, and where it does not


class Session:
    """One call of ``swarmstep train``.

    Args:
        given: the fields of Config that the user gave.
        call: the other options.
        stopping: tells whether the user asked to stop.
    """

    def __init__(self, given: dict[str, Any], call: Invocation, stopping: Callable[[], bool]) -> None:
        self.given, self.typed = {**given}, given
        self.call = call
        folder = call.resume or call.out
        if not call.resume and "workload" not in given:
            raise UsageError(
                "expected a WORKLOAD (digits, mnist, cifar10, path/to/file.py:workload) or --resume DIR"
            )
        ranked = "RANK" in os.environ and "WORLD_SIZE" in os.environ
        how = given.get("elastic") or ("local" if call.join else None)
        if call.resume and not ranked:
            how = how or read_config(Path(call.resume), done=True).elastic
        self.member = os.environ.get("SWARMSTEP_WORKER") if how in ("local", "torchft") else None
        self.is_worker = ranked or self.member is not None
        self._check_machines(how)
        if how:
            self._check_elastic(how, ranked=ranked)
        if ranked:
            self._fit_to_group(_group_size())
        self.job = Job(
            out=Path(folder) if folder else None,
            resume=bool(call.resume),
            stopping=stopping,
            stop_at=call.stop_at,
            keep=not call.no_files,
            pace=call.pace,
        )
        torch.set_num_threads(_threads())

    def _fit_to_group(self, size: int) -> None:
        if self.given.get("workers", size) != size:
            raise UsageError(
                f"--workers {self.given['workers']}: expected {size}, the processes that were started"
            )
        if self.given.get("backend") == "sim":
            raise UsageError("--backend sim: expected gloo or nccl, since these are real processes")
        self.given.setdefault("backend", "nccl" if torch.cuda.is_available() else "gloo")
        self.given["workers"] = size

    def _check_elastic(self, how: str, *, ranked: bool) -> None:
        self.given["elastic"] = how
        if how == "torchrun" and not (ranked and self.call.out):
            raise UsageError("--elastic torchrun: expected to be started by torchrun, and --out DIR to go on from")
        if how == "torchrun":
            return
        if ranked:
            raise UsageError(f"--elastic {how} starts its own workers; under torchrun give --elastic torchrun")
        if self.call.stop_at is not None:
            raise UsageError(f"--stop-at: does not go with --elastic {how}; Ctrl-C stops it after a round")
        self.given.setdefault("backend", "gloo")

    def _check_machines(self, how: str | None) -> None:
        for option, text in (("--listen", self.call.listen), ("--join", self.call.join)):
            if text and how not in ("local", "torchft"):
                raise UsageError(f"{option}: expected --elastic local, found {how or 'none'}")
        for option, text in (("--listen", self.call.listen), ("--join", self.call.join)):
            if text:
                join.address(option, text)
                join.needed_secret(option)

    @property
    def starts_processes(self) -> bool:
        """Whether this call starts worker processes."""
        return not self.is_worker and self._config().backend != "sim"

    def _config(self, *, done: bool = False) -> Config:
        """Return the config, not yet resolved: the user's, or that of the run to resume, which may be `done`."""
        if not self.call.resume:
            return Config(**self.given)
        config = read_config(Path(self.call.resume), done=done)
        for name, value in self.given.items():
            if name not in FREE and getattr(config, name) != value:
                option = "set" if name == "settings" else name.replace("_", "-")
                raise UsageError(
                    f"--{option} {value}: the run to resume has {getattr(config, name)}; leave "
                    "the option out, or start a new run"
                )
        return dataclasses.replace(config, **{name: self.given[name] for name in FREE if name in self.given})

    def simulate(self) -> dict[str, Any]:
        """Run all workers in this process."""
        config, workload = _ready(self._config())
        return lockstep.simulated(config, workload, self.job)

    def launch(self, arguments: Sequence[str]) -> int:
        """Check everything once, then start the workers as processes of their own."""
        if self.call.join:
            return self._join(arguments)
        config, workload = _ready(self._config())
        if config.backend == "nccl" and torch.cuda.device_count() < config.workers:
            found = torch.cuda.device_count()
            raise UsageError(f"--backend nccl: expected {config.workers} GPUs, found {found}; use gloo, or fewer")
        if config.fast_sums and not self.given.get(
            "fast_sums"
        ):  # a resumed run: the workers need to know it early
            arguments = [*arguments, "--fast-sums"]
        if config.elastic:
            return self._supervise(arguments, config, workload)
        return launch(arguments, config.workers)

    def _folder(self, config: Config) -> Path | None:
        return self.job.out or (new_folder(config) if self.job.keep else None)

    def _supervise(self, arguments: Sequence[str], config: Config, workload: Workload) -> int:
        with contextlib.ExitStack() as stack:
            light = self._light(config, stack)
            place = Place()
            if self.call.listen:
                where = join.address("--listen", self.call.listen)
                place = stack.enter_context(join.listening(where, config, workload))
            place = dataclasses.replace(place, environment={**place.environment, **light})
            return supervise(arguments, config.workers, self._folder(config), place, resume=self.job.resume)

    def _light(self, config: Config, stack: contextlib.ExitStack) -> dict[str, str]:
        """Return what tells the workers where their lighthouse is, if the run needs one."""
        if config.elastic != "torchft":
            return {}
        alone = not (self.call.listen or self.call.join)
        return {torchft.ADDRESS: stack.enter_context(torchft.serve_lighthouse(self.call.patience, alone=alone))}

    def _join(self, arguments: Sequence[str]) -> int:
        """Start workers for a run that another machine has started."""
        workload = self._own_workload()
        with contextlib.ExitStack() as stack:
            where = join.address("--join", self.call.join or "")
            guest = stack.enter_context(join.joined(where, self.call.patience))
            join.check_own(self.typed, workload, guest)
            workers = Config(**self.given).workers
            folder = self._folder(guest.config)
            light = self._light(guest.config, stack)
            place = dataclasses.replace(guest.place, environment={**guest.place.environment, **light})
            code = supervise(arguments, workers, folder, place, trouble=guest.trouble)
        if code == 0:
            say(f"the run at {self.call.join} is over")
        return code

    def work(self) -> dict[str, Any] | None:
        """Be one of the workers; only one returns the summary: rank 0, or whoever has taken its place."""
        return self._work_elastic(self.member) if self.member else self._work()

    def _work_elastic(self, name: str) -> dict[str, Any] | None:
        host, _, port = os.environ["SWARMSTEP_STORE"].rpartition(":")
        folder = os.environ.get("SWARMSTEP_FOLDER")
        config, workload = self._joined_config() if self.call.join else _ready(self._config(done=True))
        kind: Callable[..., Membership] = Membership
        if config.elastic == "torchft":
            kind = functools.partial(torchft.LighthouseMembership, lighthouse=os.environ[torchft.ADDRESS])
        membership = kind(
            (host, int(port)),
            name,
            start=int(os.environ["SWARMSTEP_WORKERS"]),
            silence=self.call.silence or MEMBER_SILENCE,
            patience=self.call.patience,
            exact=not config.fast_sums,
            secret=secret_of(os.environ),
        )
        membership.resumes = folder is not None
        job = dataclasses.replace(self.job, out=Path(folder) if folder else None)
        return elastic.run(config, workload, membership, job)

    def _joined_config(self) -> tuple[Config, Workload]:
        """Return the config of the run that was joined, and this machine's own workload and data."""
        config = dataclasses.replace(join.settings(os.environ[join.SETTINGS]), data=self.given.get("data"))
        workload = self._own_workload()
        return resolve(config, workload), workload

    def _own_workload(self) -> Workload:
        return _load(self.given["workload"], self.given.get("data"))

    def _work(self) -> dict[str, Any] | None:
        fast = self.given.get("fast_sums", False)
        comm = DistComm.from_env(
            self.given["backend"],
            exact=not fast,
            silence=self.call.silence or SILENCE,
            patience=self.call.patience,
        )
        try:
            self._find_run(comm)
            config, workload = _ready(self._shared_config(comm))
            if config.workers != comm.size:
                raise UsageError(f"expected {config.workers} processes, as the run has workers, found {comm.size}")
            if config.fast_sums != fast:
                raise UsageError("--fast-sums: the run to resume has it; give it here, too")
            summary = lockstep.run(config, workload, comm, self.job)
        finally:
            comm.close()
        return summary if comm.rank == 0 else None

    def _find_run(self, comm: DistComm) -> None:
        """Under torchrun, which starts all workers again: go on with the run in --out, if there is one."""
        if self.given.get("elastic") == "torchrun":
            file = Path(self.call.out or "") / "config.json"
            if from_rank_0(lambda: "there" if file.exists() else "", comm):
                self.call = dataclasses.replace(self.call, resume=self.call.out, out=None)
                self.job = dataclasses.replace(self.job, resume=True)

    def _shared_config(self, comm: DistComm) -> Config:
        """Return rank 0's config: the other machines need not see the folder of a run to resume."""
        text = from_rank_0(lambda: json.dumps(dataclasses.asdict(self._config())), comm)
        return Config(**json.loads(text))


def _group_size() -> int:
    """Return WORLD_SIZE, checked together with RANK."""
    found = {name: os.environ[name] for name in ("RANK", "WORLD_SIZE")}
    if not all(text.isdecimal() for text in found.values()) or not int(found["RANK"]) < int(found["WORLD_SIZE"]):
        raise UsageError(
            f"environment: expected RANK from 0 to WORLD_SIZE - 1, found RANK={found['RANK']!r} and "
            f"WORLD_SIZE={found['WORLD_SIZE']!r}; set them as torchrun does, or unset them"
        )
    return int(found["WORLD_SIZE"])


def _threads() -> int:
    """Return how many threads a worker computes with: OMP_NUM_THREADS (its first number), or 1."""
    found = re.match(r"\s*([1-9]\d{0,3})\b", os.environ.get("OMP_NUM_THREADS", ""))
    return int(found[1]) if found else 1


def _load(name: str, data: str | None) -> Workload:
    return load(name, Path(data) if data else None)


def _ready(config: Config) -> tuple[Config, Workload]:
    """Load the workload and fill in the config."""
    workload = _load(config.workload, config.data)
    return resolve(config, workload), workload
