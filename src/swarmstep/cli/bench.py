"""Both ends of ``swarmstep bench``: the command that people call, and the worker processes that it starts."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

from swarmstep.comm.group import Group
from swarmstep.microbench.machine import machine
from swarmstep.microbench.options import checked, whole
from swarmstep.microbench.results import Report
from swarmstep.microbench.table import show
from swarmstep.microbench.workers import JOB, Place, WorkerGroup, start_group


class Benchmark(Protocol):
    """What the module of a benchmark has."""

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Add its options; --seed, --patience and --json are there."""
        ...

    def lead(self, args: argparse.Namespace, group: WorkerGroup) -> Report:
        """Check the options, call `group` once or several times, and return what came out of it all."""
        ...

    def work(self, comm: Group, settings: Mapping[str, Any]) -> Report:
        """Measure, in a process of the group; what rank 0 returns is handed over."""
        ...


class BenchmarkEntry(NamedTuple):
    """A benchmark's place."""

    module: str  # in this package
    about: str


BENCHMARKS = {
    "round": BenchmarkEntry("rounds", "what a round costs, next to bare collectives and to other libraries"),
    "wire": BenchmarkEntry("wire", "what a round costs on the wire, in time and in bytes, plain and coded"),
    "overlap": BenchmarkEntry("overlap", "the speed of training beside that without communication"),
    "scale": BenchmarkEntry("scale", "what a round costs by number of workers and size of the model"),
}
"""All benchmarks. A new one is a module with the functions of `Benchmark`, and a line here."""


def _module(name: str) -> Benchmark:
    return cast(Benchmark, importlib.import_module(f"swarmstep.microbench.{BENCHMARKS[name].module}"))


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the benchmarks as commands of ``swarmstep bench``."""
    commands = parser.add_subparsers(title="benchmarks", dest="benchmark", required=True, metavar="BENCHMARK")
    for name, entry in BENCHMARKS.items():
        one = commands.add_parser(name, help=entry.about, description=f"Measure {entry.about}.")
        _module(name).add_options(one)
        one.add_argument("--seed", type=whole, default=0, metavar="S", help="of weights and rounds (default: 0)")
        one.add_argument("--patience", type=float, default=1800.0, metavar="SECONDS", help="end processes "
            "that are not done after so long (default: 1800)")  # fmt: skip
        one.add_argument("--json", action="store_true", help="print one JSON object as the last line")


def run(args: argparse.Namespace) -> int:
    """Be what this process is: the one that a user called, or a worker."""
    if JOB in os.environ:
        return _work(json.loads(os.environ[JOB]))
    checked(args, seed=(0, 2**62), patience=(1.0, 1e6))

    def group(workers: int, settings: Mapping[str, Any], place: Place | None = None) -> Report:
        if sys.stderr and sys.stderr.isatty():
            print(
                f"{args.benchmark}: {workers} process{'es' * (workers > 1)} at work", file=sys.stderr, flush=True
            )
        return start_group(args.benchmark, workers, settings, args.patience, place)

    about = machine()
    report = _module(args.benchmark).lead(args, group)
    if args.json:
        print(json.dumps({"benchmark": args.benchmark, "machine": about, **json.loads(report.dumps())}))
    else:
        show(report, about)
    return 0


def _work(job: Mapping[str, Any]) -> int:
    import torch

    from swarmstep.comm.dist import DistComm

    torch.set_num_threads(1)
    comm = DistComm.from_env("gloo", patience=job["patience"])
    try:
        report = _module(job["benchmark"]).work(comm, job["settings"])
    finally:
        comm.close()
    if comm.rank == 0:
        Path(job["report"]).write_text(report.dumps())
    return 0
