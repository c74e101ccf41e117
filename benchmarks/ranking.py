"""All methods on text, tuned alike: who wins, by how much, and what cannot be told apart?

    python benchmarks/ranking.py --seeds 3            # measures what is not there yet
    python benchmarks/ranking_table.py                # prints the tables

Each method's inner learning rate is the best of three, with 4 workers (or one), n = 16, half the steps of twice
the examples, and a seed of its own: the workload's, twice that, and on the better side half or twice as much
again. That rate is taken in all of the method's cells. Runs are kept in benchmarks/results/ranking.json and never
repeated. Data come from SWARMSTEP_DATA.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import math
import multiprocessing
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from swarmstep import Group, Round, simulate
from swarmstep.errors import NotFinite, ResultNotFinite
from swarmstep.objectives import PrimalAveraging, PseudoSynchronization
from swarmstep.objectives.inner import Inner
from swarmstep.train.build import resolve
from swarmstep.train.config import Config
from swarmstep.train.job import Job
from swarmstep.train.lockstep_coordinator import Lockstep, open_logger
from swarmstep.train.trainer import Trainer
from swarmstep.workloads import BUILT_IN, Workload, load

FILE = Path(__file__).parent / "results" / "ranking.json"
WORKLOAD, MODEL = "text", "gpt-small"
STEPS = {1: 640, 4: 640, 16: 320}  # of each worker, by their number
BATCH = 4  # examples of a worker's step; steps and batch are such that n = 64 has ten rounds
RATES = (1.0, 2.0)  # times the workload's own learning rate; then a third one beside the better
TUNING_SEED = 100
EVERY = (16, 64)
DIVERGED = 8 * math.log(2)  # the loss of a run that has diverged: that of guessing bytes
NEVER = 0  # the n of a method that has none

Options = Mapping[str, Any]


class Method(NamedTuple):
    """How a method is asked for, and where it is measured."""

    options: Options  # of Config; "{n}" stands for the steps between rounds
    workers: tuple[int, ...] = (4, 16)
    rounds: bool = True  # whether it has an n
    around: Callable[[Inner, int], Inner] = lambda optimizer, rank: optimizer  # what stands around the optimizer


def _outer(**settings: Any) -> Options:
    return {"strategy": "diloco", "settings": {name: str(value) for name, value in settings.items()}}


MUON: Options = {"optimizer": "muon"}
BY_WORKERS = _outer(lr="none", momentum="none")
METHODS: Mapping[str, Method] = {
    "synchronous": Method({"strategy": "synchronous"}, rounds=False),
    "synchronous+muon": Method({"strategy": "synchronous", **MUON}, rounds=False),
    "local-sgd": Method({"strategy": "local-sgd"}),
    "swarm": Method({"strategy": "swarm"}),
    "diloco": Method(BY_WORKERS),
    "diloco+paper": Method(_outer(lr=0.7, momentum=0.9), (4,)),
    "local-sgd+muon": Method({"strategy": "local-sgd", **MUON}, (4,)),
    "swarm+muon": Method({"strategy": "swarm", **MUON}),
    "muloco": Method({**BY_WORKERS, **MUON}),
    "sparseloco": Method({**_outer(lr=1, momentum=0), "codec": "sparseloco"}),
    "slowmo": Method({"strategy": "slowmo"}, (4,)),
    "des-loc": Method({"strategy": "local-sgd", "optimizer_state": "exp_avg=3,exp_avg_sq=6"}, (4,)),
    "mt-dao": Method(
        {"strategy": "local-sgd", "optimizer": "mt-dao", "optimizer_state": "slow_avg=3,exp_avg_sq=6"}, (4,)
    ),
    "gasloc": Method({"strategy": "gasloc"}),
    "noloco": Method({"strategy": "noloco"}, (4,)),
    "edit": Method({"strategy": "edit"}, (4,)),
    "sparta-diloco": Method(
        {
            "strategy": "sparta-diloco",
            "settings": {"outer_every": "{n}", "lr": "none", "momentum": "none"},
            "every": 1,
        },
        (4,),
    ),
    "palsgd": Method(
        {"strategy": "local-sgd"},
        (4,),
        around=lambda optimizer, rank: PseudoSynchronization(optimizer, 0.1, 0.1, rank=rank),
    ),
    "pso-ps": Method({"strategy": "pso-ps"}, (4,)),
    "sparta": Method({"strategy": "sparta", "every": 1}, (4,), rounds=False),
    "independent": Method({"strategy": "independent"}, (4,), rounds=False),
    "alone": Method({"strategy": "independent"}, (1,), rounds=False),
    "snoo": Method(BY_WORKERS, (1,)),
    "gpa": Method(
        {"strategy": "independent"}, (1,), rounds=False, around=lambda optimizer, rank: PrimalAveraging(optimizer)
    ),
}
KEY = ("method", "workers", "every", "rate", "seed")


class Cell(NamedTuple):
    """A run to be made."""

    method: str
    workers: int
    every: int
    rate: float  # times the workload's own
    seed: int


def config(cell: Cell) -> Config:
    """Return the run's Config."""
    defaults = BUILT_IN[WORKLOAD].defaults
    options = dict(METHODS[cell.method].options)
    own: dict[str, Any] = {"every": cell.every} if cell.every else {}
    settings = {name: value.format(n=cell.every) for name, value in options.pop("settings", {}).items()}
    given: dict[str, Any] = (
        dataclasses.asdict(defaults) | own | {"model": MODEL, "eval_every": 10**9, "workers": cell.workers}
    )
    half = 2 if cell.seed == TUNING_SEED else 1
    given |= {"steps": STEPS[cell.workers] // half, "batch": BATCH * half, "settings": settings}
    given |= {"lr": cell.rate * defaults.lr, "seed": cell.seed}
    return Config(WORKLOAD, **given | options)


class Watched(Lockstep):
    """Tells what stands around the optimizer of rounds, and of the end."""

    def round_landed(self, report: Round) -> None:
        super().round_landed(report)
        for part in self.trainer.optimizer.parts:
            if isinstance(part, PseudoSynchronization):
                part.landed()

    def after_step(self, loss: Tensor, landed: list[Round]) -> None:
        super().after_step(loss, landed)
        for part in self.trainer.optimizer.parts:
            if isinstance(part, PrimalAveraging) and self.trainer.taken == self.trainer.steps:
                part.eval()


@functools.cache
def text() -> Workload:
    """Return the data, read once in a process."""
    return load(WORKLOAD)


def run(cell: Cell) -> dict[str, Any]:
    """Train once in this process; return what is kept of it."""
    torch.set_num_threads(1)
    data, job = text(), Job(quiet=True, keep=False)
    resolved = resolve(config(cell), data)

    def worker(comm: Group) -> dict[str, Any]:
        trainer = Trainer(resolved, data, comm, job, None)
        around = METHODS[cell.method].around
        trainer.optimizer.parts = tuple(around(part, comm.rank) for part in trainer.optimizer.parts)
        summary = trainer.train(Watched(trainer, open_logger(resolved, comm, job), job))
        assert summary is not None
        return summary

    try:
        summary = simulate(worker, cell.workers)[0]
    except (NotFinite, ResultNotFinite):
        return cell._asdict() | {"test_loss": DIVERGED, "bytes": 0}
    return cell._asdict() | {"test_loss": summary["test_loss"], "bytes": round(summary["bytes_sent_per_worker"])}


def read() -> list[dict[str, Any]]:
    """Return the rows so far."""
    return json.loads(FILE.read_text())["rows"] if FILE.exists() else []


def keep(rows: list[dict[str, Any]]) -> None:
    """Write the rows, in order."""
    rows.sort(key=lambda row: [str(row[name]) for name in KEY])
    lines = ",\n".join(json.dumps(row) for row in rows)
    FILE.write_text(f'{{"command": "python benchmarks/ranking.py", "rows": [\n{lines}\n]}}\n')


def measure(cells: Iterable[Cell], jobs: int) -> None:
    """Run what is not there yet."""
    done = {tuple(row[name] for name in KEY) for row in read()}
    todo = [cell for cell in cells if cell not in done]
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        for future in as_completed([pool.submit(run, cell) for cell in todo]):
            keep([*read(), future.result()])  # another call may have added to it
            print(*future.result().values(), flush=True)


def ns(name: str) -> tuple[int, ...]:
    """Return the n that a method is measured at; it is tuned at the first."""
    return EVERY if METHODS[name].rounds else (NEVER,)


def tuned() -> dict[str, dict[float, float]]:
    """Return method -> rate -> test loss of the tuning runs so far."""
    found: dict[str, dict[float, float]] = {name: {} for name in METHODS}
    for row in read():
        if row["seed"] == TUNING_SEED:
            found[row["method"]][row["rate"]] = row["test_loss"]
    return found


def best(found: Mapping[float, float]) -> float:
    """Return the rate of the lowest loss."""
    return min(found, key=found.__getitem__)


def tuning(methods: Sequence[str], rates: Callable[[Mapping[float, float]], Iterable[float]]) -> list[Cell]:
    """Return the runs at the rates that follow from a method's losses so far."""
    found = tuned()
    return [
        Cell(name, METHODS[name].workers[0], ns(name)[0], rate, TUNING_SEED)
        for name in methods
        for rate in rates(found[name])
    ]


def beside(losses: Mapping[float, float]) -> tuple[float]:
    """Return the third rate: beyond the better one of the first two."""
    low, high = RATES
    return (2 * high,) if losses[high] < losses[low] else (low / 2,)


def planned(methods: Sequence[str], seed: int, workers: int) -> list[Cell]:
    """Return the runs of a seed."""
    found = tuned()
    return [
        Cell(name, workers, every, best(found[name]), seed)
        for name in methods
        if workers in METHODS[name].workers
        for every in ns(name)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", default=[*METHODS], help=f"of {', '.join(METHODS)}")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--workers", type=int, nargs="+", default=[*STEPS])
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    if args.seeds:
        measure(tuning(args.methods, lambda _: RATES), args.jobs)
        measure(tuning(args.methods, beside), args.jobs)
    cells = [cell for seed in range(args.seeds) for w in args.workers for cell in planned(args.methods, seed, w)]
    measure(cells, args.jobs)


if __name__ == "__main__":
    main()
