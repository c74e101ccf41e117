"""LocalDrop on few examples: test errors next to none, dropout and weight decay; and with a low-rank codec.

    python benchmarks/localdrop.py -o benchmarks/results/localdrop.json [--seeds 10] [--coded 3]

2,000 MNIST examples, drawn by the seed, the MLP 784-256-256-10. First one worker, 600 steps of 50 examples; the
strength of each regularizer is the best of three on the run's validation set, with a seed of its own. Then 4
workers, local SGD with n = 16, 300 steps, with and without the codecs rank:1 and rank:4, and with LocalDrop at its
largest lambda. What is finished is not run again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from paired import between
from torch import nn

from swarmstep.train.build import resolve
from swarmstep.train.config import Config
from swarmstep.train.in_process import simulated
from swarmstep.train.job import Job
from swarmstep.workloads import Workload, load

ARMS: dict[str, list[dict[str, Any]]] = {
    "none": [{}],
    "dropout": [{"regularizer": f"dropout:{p}"} for p in (0.2, 0.5, 0.7)],
    "weight decay": [{"weight_decay": x} for x in (3e-4, 3e-3, 3e-2)],
    "LocalDrop": [{"regularizer": f"localdrop:lam={lam}"} for lam in (0.01, 0.1, 0.3)],
}
ALONE: dict[str, Any] = {"strategy": "independent", "workers": 1, "steps": 600, "batch": 50}
TOGETHER: dict[str, Any] = {"strategy": "local-sgd", "workers": 4, "every": 16, "steps": 300, "batch": 50}
TUNED_ON = 1000  # a seed


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)
    )


class Cells:
    """Runs by their settings, kept in a file."""

    def __init__(self, path: Path) -> None:
        self.path, self.mnist = path, load("mnist")
        self.done: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"cells": {}}

    def run(self, settings: dict[str, Any], seed: int) -> dict[str, float]:
        key = json.dumps({**settings, "seed": seed}, sort_keys=True)
        if key not in self.done["cells"]:
            workload = self._few(seed)
            fields = {"schedule": "cosine", "eval_every": 10_000, **settings, "seed": seed}
            config = resolve(Config("mnist", **fields), workload)
            summary = simulated(config, workload, Job(quiet=True, keep=False))
            kept = ("test_accuracy", "validation_accuracy", "keep_rate", "rank", "bytes_sent_per_worker")
            self.done["cells"][key] = {name: summary[name] for name in kept if name in summary}
            self.path.write_text(json.dumps(self.done, indent=1) + "\n")
        return self.done["cells"][key]

    def _few(self, seed: int) -> Workload:
        order = torch.randperm(len(self.mnist.train), generator=torch.Generator().manual_seed(seed))
        return dataclasses.replace(self.mnist, train=self.mnist.train.take(order[:2000]), models={"mlp": mlp})

    def best(self, arm: str) -> dict[str, Any]:
        """Return the settings of a regularizer that are best on a validation set."""
        return max(ARMS[arm], key=lambda s: self.run({**ALONE, **s}, TUNED_ON)["validation_accuracy"])


def errors(cells: Cells, settings: dict[str, Any], seeds: int) -> list[float]:
    return [100 * (1 - cells.run(settings, seed)["test_accuracy"]) for seed in range(seeds)]


def line(name: str, found: list[float], base: list[float]) -> str:
    less = [a - b for a, b in zip(found, base, strict=True)]
    return f"| {name} | {between(found, 2)} | {between(less, 2, 'any')} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--coded", type=int, default=3, help="seeds of the runs with a codec")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cells = Cells(args.output)
    cells.done["command"] = (
        f"python benchmarks/localdrop.py -o {args.output} --seeds {args.seeds} --coded {args.coded}"
    )
    best = {arm: cells.best(arm) for arm in ARMS}
    for seed in range(args.seeds):
        for settings in best.values():
            cells.run({**ALONE, **settings}, seed)
    print("| | test error, % | less none, % |\n|---|---|---|")
    base = errors(cells, ALONE, args.seeds)
    for arm, settings in best.items():
        print(line(f"{arm} {settings}", errors(cells, {**ALONE, **settings}, args.seeds), base), flush=True)
    if args.coded < 2:
        return
    print("| 4 workers | test error, % | above no codec, % |\n|---|---|---|")
    for arm, chosen in (("none", {}), ("LocalDrop", ARMS["LocalDrop"][-1])):  # the shortest tails
        base = errors(cells, {**TOGETHER, **chosen}, args.coded)
        for codec in (None, "rank:1", "rank:4"):
            settings = {**TOGETHER, **chosen, **({"codec": codec} if codec else {})}
            print(line(f"{arm}, {codec}", errors(cells, settings, args.coded), base), flush=True)


if __name__ == "__main__":
    main()
