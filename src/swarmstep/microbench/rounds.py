"""The cost of one round, compared with bare collectives and with other libraries: ``bench round``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from swarmstep.comm.group import Group
from swarmstep.microbench import baselines
from swarmstep.microbench.cases import CaseMaker
from swarmstep.microbench.checks import check_memory, checked
from swarmstep.microbench.interleaved_timing import Case, interleaved_medians
from swarmstep.microbench.results import Report, Skipped, rows_of
from swarmstep.microbench.settings import RoundSettings
from swarmstep.microbench.workers import WorkerGroup
from swarmstep.strategies import DiLoCo, InformedSwarm, LocalSGD
from swarmstep.strategies.base import Strategy
from swarmstep.strategies.pso_ps import PSOPS
from swarmstep.when import Every

VECTORS = 56  # of P floats that a worker holds at most: eleven modules, copies, states, and limits

ALL_REDUCE, BROADCAST = "all-reduce", "broadcast"
OUTER, PULL, PULL_ALONE = "all-reduce + outer move", "broadcast + pso move", "pso move"
ACCELERATE = "accelerate-local-sgd"

LIMITS: dict[str, str | None] = {
    ALL_REDUCE: None,
    BROADCAST: None,
    OUTER: None,
    PULL: None,
    PULL_ALONE: None,
    "all-reduce-bfloat16": ALL_REDUCE,
    "flatten-all-reduce-unflatten": ALL_REDUCE,
    "torch-periodic-averager": ALL_REDUCE,
    ACCELERATE: ALL_REDUCE,
    "local-sgd": ALL_REDUCE,
    "local-sgd/views": ALL_REDUCE,
    "swarm": OUTER,
    "diloco": OUTER,
    "pso-ps": PULL,
    "pso-ps/unchanged": PULL_ALONE,
}
"""Names of the cases, and of the case that each is compared with."""


def lead(settings: RoundSettings, group: WorkerGroup) -> Report:
    """Start the workers and return their report."""
    checked(
        settings, workers=(1, 128), parameters=(1, 10**9), tensors=(1, settings.parameters), repeats=(1, 10_000)
    )
    check_memory(settings.workers * settings.parameters, VECTORS, "fewer --workers or --parameters")
    of_workers = {name: getattr(settings, name) for name in ("parameters", "tensors", "repeats", "seed")}
    return group(settings.workers, of_workers)


def work(comm: Group, settings: Mapping[str, Any]) -> Report:
    """Measure as one of the workers."""
    make = CaseMaker(comm, settings["parameters"], settings["tensors"], settings["seed"])
    report = Report()
    cases = {name: make_case() for name, make_case in _baselines(make).items()}
    cases |= {name: synchronized(make, name) for name in STRATEGIES}
    try:
        cases[ACCELERATE] = make.of_module(baselines.accelerate_local_sgd)
    except ImportError as error:
        report.skipped.append(Skipped(ACCELERATE, f"{error}; pip install accelerate"))
    medians = interleaved_medians(cases, comm, settings["repeats"])
    limits = {name: limit for name, limit in LIMITS.items() if name in medians}
    report.rows += rows_of(medians, limits, comm.size, make.parameters)
    return report


def _baselines(make: CaseMaker) -> dict[str, Callable[[], Case]]:
    return {
        ALL_REDUCE: make.all_reduce,
        BROADCAST: make.broadcast,
        OUTER: make.outer_move,
        PULL: lambda: make.pull_move(broadcast=True),
        PULL_ALONE: lambda: make.pull_move(broadcast=False),
        "all-reduce-bfloat16": make.all_reduce_bfloat16,
        "flatten-all-reduce-unflatten": lambda: make.of_module(
            lambda module: lambda: baselines.flatten_and_average(list(module.parameters()))
        ),
        "torch-periodic-averager": lambda: make.of_module(baselines.periodic_averager),
    }


STRATEGIES: dict[str, Strategy] = {
    "local-sgd": LocalSGD(when=Every(1)),
    "local-sgd/views": LocalSGD(when=Every(1)),
    "swarm": InformedSwarm(trust="uniform", when=Every(1)),
    "diloco": DiLoCo(when=Every(1)),
    "pso-ps": PSOPS(when=Every(1)),
    "pso-ps/unchanged": PSOPS(best="historical", when=Every(1)),
}


def synchronized(make: CaseMaker, name: str) -> Case:
    """Return a round of one of `STRATEGIES`, with losses that cause the most work, or ("unchanged") the least."""

    def loss(round_: int) -> float:
        if name == "pso-ps/unchanged":
            return 1.0 if round_ == 0 else 2.0  # worse than the best so far
        return (1.0 + make.comm.rank) / (1.0 + round_)  # rank 0 leads, as in the bare broadcast; all improve

    return make.synchronized(STRATEGIES[name], loss, views=name.endswith("/views"))
