"""What this is for, in two tables: `make demo`. The swarm next to what one would otherwise take, on the digits."""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from statistics import mean

import torch

from swarmstep.train.build import resolve
from swarmstep.train.config import Config
from swarmstep.train.job import Job
from swarmstep.train.lockstep_coordinator import simulated
from swarmstep.workloads import load

METHODS = {
    "swarm": "ours: how far to go, and whom to trust, found by the workers",
    "local-sgd": "the workers' mean",
    "diloco": "the mean, with a fixed momentum",
    "pso-ps": "a particle swarm, as first published",
    "independent": "no communication",
}
SEEDS = range(3)
TABLES = {
    "iid": "All is well",
    "bad-labels:1": "One of the four workers has random labels",
}


def run(shards: str, method: str, seed: int) -> tuple[float, float]:
    """Train once, from the workload's own settings; return test loss and accuracy."""
    torch.set_num_threads(1)
    workload = load("digits")
    config = resolve(Config("digits", strategy=method, shards=shards, seed=seed, every=16), workload)
    summary = simulated(config, workload, Job(quiet=True, keep=False))
    return summary["test_loss"], summary["test_accuracy"]


def table(shards: str, pool: ProcessPoolExecutor) -> list[tuple[float, float, str]]:
    """Return test loss and accuracy, means over the seeds, of each method; the best first."""
    found = {m: [pool.submit(run, shards, m, seed) for seed in SEEDS] for m in METHODS}
    scores = {m: [future.result() for future in futures] for m, futures in found.items()}
    return sorted((mean(loss for loss, _ in of), mean(right for _, right in of), m) for m, of in scores.items())


if __name__ == "__main__":
    print("1,437 handwritten digits, 4 workers, 400 steps each, a round each 16 steps; nothing is tuned; 3 seeds")
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        for shards, title in TABLES.items():
            rows = table(shards, pool)
            print(f"\n{title}\n{'':14}{'test loss':>10}{'accuracy':>10}")
            for loss, right, method in rows:
                print(f"{method:14}{loss:10.3f}{right:10.3f}   {METHODS[method]}")
            (best, _, first), (next_best, _, second) = rows[:2]
            print(f"-> {first} has {1 - best / next_best:.0%} less loss than {second}, the next best.")
