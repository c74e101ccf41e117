"""All benchmarks by name. Importing this does not import torch."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

from swarmstep.microbench.settings import (
    BenchSettings,
    OverlapSettings,
    RoundSettings,
    ScaleSettings,
    SweepSettings,
    WireSettings,
)

if TYPE_CHECKING:
    from swarmstep.comm.group import Group
    from swarmstep.microbench.results import Report
    from swarmstep.microbench.workers import WorkerGroup

JOB = "SWARMSTEP_BENCH"  # the environment variable that makes a process a worker


class Benchmark(Protocol):
    """The functions of a benchmark's module."""

    def lead(self, settings: Any, group: WorkerGroup) -> Report:
        """Check the settings, start groups of workers with `group`, and return the whole report."""
        ...

    def work(self, comm: Group, settings: Mapping[str, Any]) -> Report:
        """Measure as one of the workers; the report of rank 0 is used."""
        ...


class BenchmarkEntry(NamedTuple):
    """A benchmark's module in this package, its settings, and what it measures."""

    module: str
    settings: type[BenchSettings]
    about: str

    def load(self) -> Benchmark:
        """Return the module."""
        return cast(Benchmark, importlib.import_module(f"swarmstep.microbench.{self.module}"))


BENCHMARKS = {
    "round": BenchmarkEntry(
        "rounds", RoundSettings, "what a round costs, compared with bare collectives and with other libraries"
    ),
    "wire": BenchmarkEntry(
        "wire", WireSettings, "what a round costs on the network in time and bytes, plain and coded"
    ),
    "overlap": BenchmarkEntry(
        "overlap", OverlapSettings, "the speed of training, compared with training without communication"
    ),
    "scale": BenchmarkEntry(
        "scale", ScaleSettings, "what a round costs by number of workers and size of the model"
    ),
    "sweep": BenchmarkEntry(
        "sweep", SweepSettings, "how many sweeps a recurrent network takes that is cut over the workers"
    ),
}
"""To add one: a module with the functions of `Benchmark`, a class of settings, and a line here."""
