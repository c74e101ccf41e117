"""The methods as they come, with each workload's own settings: who loses, and by how much?

    python benchmarks/untuned.py digits mnist:mlp cifar10:cnn text --seeds 5 --every 16,64
    python benchmarks/untuned.py text:gpt-small --optimizer muon --workers 16
    python benchmarks/untuned.py                      # prints what has been measured

Runs are kept in benchmarks/results/untuned.json and never repeated. Data come from SWARMSTEP_DATA.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
import torch
from paired import geometric

from swarmstep.compare.statistics import Estimate
from swarmstep.train.build import resolve
from swarmstep.train.config import Config
from swarmstep.train.job import Job
from swarmstep.train.lockstep_coordinator import simulated
from swarmstep.workloads import BUILT_IN, load

FILE = Path(__file__).parent / "results" / "untuned.json"
METHODS = ("swarm", "local-sgd", "diloco")
CONDITION = ("workload", "model", "optimizer", "lr", "steps", "workers", "every", "shards", "fault")
KEY = (*CONDITION, "strategy", "seed")


def run(config: Config) -> dict[str, Any]:
    """Train once in this process; return what is kept of it."""
    torch.set_num_threads(1)
    data = load(config.workload)
    summary = simulated(resolve(config, data), data, Job(quiet=True, keep=False))
    kept = ("test_loss", "test_accuracy", "distrusted")
    return dict(zip(KEY, key(config), strict=True)) | {name: summary[name] for name in kept}


def key(config: Config) -> tuple[Any, ...]:
    """Return what tells a run from all others."""
    return tuple(getattr(config, name) for name in KEY)


def read() -> list[dict[str, Any]]:
    """Return the rows so far."""
    return json.loads(FILE.read_text())["rows"] if FILE.exists() else []


def keep(rows: list[dict[str, Any]]) -> None:
    """Write the rows, in order."""
    rows.sort(key=lambda row: [str(row[name]) for name in KEY])
    FILE.write_text(json.dumps({"command": "benchmarks/evidence.sh untuned", "rows": rows}, indent=0) + "\n")


def measure(tasks: list[Config], jobs: int) -> None:
    """Run what is not there yet."""
    rows = read()
    done = {tuple(row[name] for name in KEY) for row in rows}
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        for future in as_completed([pool.submit(run, task) for task in tasks if key(task) not in done]):
            rows = read()  # another call may have added to it
            keep([*rows, future.result()])
            print(*future.result().values(), flush=True)


def ratio(rows: list[dict[str, Any]], method: str, other: str) -> Estimate:
    """Return the ratio of the test losses over common seeds."""
    losses = [{row["seed"]: row["test_loss"] for row in rows if row["strategy"] == m} for m in (method, other)]
    seeds = sorted(losses[0].keys() & losses[1].keys())
    return geometric([losses[0][seed] / losses[1][seed] for seed in seeds])


def groups(rows: list[dict[str, Any]]) -> dict[tuple[Any, ...], list[dict[str, Any]]]:
    """Return the rows of each condition."""
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(tuple(row[name] for name in CONDITION), []).append(row)
    return found


def show() -> None:
    """Print a line for each condition: the mean losses, and the swarm's ratio to each other method."""
    for condition, rows in groups(read()).items():
        means = {m: [row["test_loss"] for row in rows if row["strategy"] == m] for m in METHODS}
        losses = ", ".join(f"{m} {np.mean(of):.4f}" for m, of in means.items() if of)
        ratios = [
            f"{other} {mean:.3f} ({low:.3f} to {high:.3f}, {count} seeds)"
            for other in METHODS[1:]
            if means["swarm"] and means[other]
            for mean, low, high, count in [ratio(rows, "swarm", other)]
        ]
        print(
            *(word for word in condition if word is not None),
            "|",
            losses,
            "| swarm's loss, times that of",
            "; ".join(ratios),
        )


def planned(args: argparse.Namespace) -> list[Config]:
    """Return the runs that the command line asks for, seed by seed, with their defaults filled in."""
    given = {name: getattr(args, name) for name in ("optimizer", "lr", "steps", "fault")}
    runs: list[Config] = []
    for seed in range(args.seeds):
        for name, _, model in (word.partition(":") for word in args.workloads):
            built_in = BUILT_IN[name]
            defaults = dataclasses.asdict(built_in.defaults) | {"eval_every": 10**9, "model": built_in.models[0]}
            filled = defaults | {n: value for n, value in given.items() if value is not None}
            if model:
                filled["model"] = model
            runs += [
                Config(name, **filled | {"strategy": s, "workers": w, "every": n, "shards": shards, "seed": seed})
                for n in args.every
                for w in args.workers
                for shards in args.shards
                for s in args.methods
            ]
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    numbers, words = (lambda text: [int(word) for word in text.split(",")]), (lambda text: text.split(","))
    parser.add_argument("workloads", nargs="*", help="NAME or NAME:MODEL")
    parser.add_argument("--methods", type=words, default=METHODS)
    parser.add_argument("--every", type=numbers, default=[16])
    parser.add_argument("--workers", type=numbers, default=[4])
    parser.add_argument("--shards", type=words, default=["iid"])
    parser.add_argument("--fault")
    parser.add_argument("--optimizer")
    parser.add_argument("--lr", type=float)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    measure(planned(args), args.jobs)
    show()


if __name__ == "__main__":
    main()
