"""CODA's claims on two cores: the AUC with rare rounds, against cross-entropy, and steps by the number of workers.

    python benchmarks/auc.py -o benchmarks/results/auc.json

Every run takes plain SGD steps of 32 examples, W workers, local SGD at each n-th step. Each objective has the best
of its learning rates on digits:0.1 at n = 8 with a seed that is not among the others, judged by the test AUC like
the runs. Finished runs in the file are not run again.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import platform
from pathlib import Path
from typing import Any

import torch
from paired import between
from torch import nn

from swarmstep import Every, Group, LocalSGD, Options, Synchronizer, simulate
from swarmstep.data.sampler import BalancedSampler, Sampler
from swarmstep.data.sharding import shard
from swarmstep.errors import NotFinite
from swarmstep.objectives import auc
from swarmstep.runtime.flat import Flat
from swarmstep.seeding import mix
from swarmstep.train.run_folder import replace_file
from swarmstep.workloads import load

SEEDS, TUNING = range(5), 1000
RATES = (0.3, 0.6, 1.0)  # learning rates
METHODS = {
    "auc": {"objective": "auc", "sampling": "balanced"},
    "cross-entropy": {"objective": "cross-entropy", "sampling": "natural"},
}
STEPS = 192
TASKS = {
    "digits:0.1": {"auc": (1, 64), "cross-entropy": (64,)},
    "digits:0.02": {"auc": (64,), "cross-entropy": (64,)},
}
# The speed-up: batches of two, so that noise is what holds a worker back, and a rate that grows with the workers.
SPEED_UP, TARGET, LONGEST, RATE = "digits:0.1", 0.95, 960, 0.03
WORKERS, FEWER = (1, 2, 4, 8), range(3)  # seeds


Points = list[tuple[int, float, float]]  # (step, test AUC, bytes sent by a worker) of each evaluation


def run(task: str, seed: int, eval_every: int, **fields: Any) -> Points:
    """Return the evaluations of a run; one NaN where it diverged."""
    try:
        return simulate(lambda comm: train(comm, task, seed, eval_every, fields), fields["workers"])[0]
    except NotFinite:
        return [(fields["steps"], math.nan, math.nan)]


def train(comm: Group, task: str, seed: int, eval_every: int, fields: dict[str, Any]) -> Points:
    """Be one worker: plain SGD on its own shard, local SGD at each n-th step."""
    workload = load(f"imbalanced:{task}")
    inputs, targets = workload.prepare(workload.train.inputs), workload.train.targets
    part = shard(targets, "classes:2", comm.size, seed, classes=2)[comm.rank]  # both classes dealt out evenly
    balanced = fields["sampling"] == "balanced"
    kind = (lambda *given: BalancedSampler(*given, classes=2)) if balanced else Sampler
    sampler = kind(part, fields.get("batch", 32), seed, comm.rank)
    positive = 0.5 if balanced else float(targets.double().mean())
    torch.manual_seed(mix(seed, "model"))
    model = workload.models["mlp"]()
    criterion = workload.objectives[fields["objective"]](torch.tensor([1 - positive, positive]))
    both = nn.ModuleDict({"model": model} | ({"criterion": criterion} if isinstance(criterion, nn.Module) else {}))
    optimizer = torch.optim.SGD(both.parameters(), lr=fields["lr"])
    sync = Synchronizer(both, LocalSGD(when=Every(fields["every"])), comm, Options(seed=seed))
    spare, points = copy.deepcopy(both), Points()
    for step in range(1, fields["steps"] + 1):
        drawn = sampler.batch(step)
        optimizer.zero_grad()
        loss = criterion(model(inputs[drawn.indices]), drawn.targets)
        loss.backward()
        optimizer.step()
        sync.step(loss)
        if step % eval_every == 0:
            Flat(spare).write(sync.result())
            with torch.no_grad():
                found = auc(spare["model"](workload.prepare(workload.test.inputs)), workload.test.targets)
            points.append((step, found, float(sync.bytes_sent)))
    return points


class Runs:
    """Finished runs, in a file."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.found: dict[str, Any] = json.loads(file.read_text())["runs"] if file.exists() else {}

    def points(self, task: str, seed: int, eval_every: int, **fields: Any) -> Points:
        """Return what `run` returns, from the file if it is there."""
        key = json.dumps([task, seed, eval_every, fields], sort_keys=True)
        if key not in self.found:
            self.found[key] = run(task, seed, eval_every, **fields)
            print(key, self.found[key][-1], flush=True)
            about = {"command": f"python benchmarks/auc.py -o {self.file}", "torch": torch.__version__}
            content = {"about": {**about, "python": platform.python_version()}, "runs": self.found}
            replace_file(self.file, lambda partial: partial.write_text(json.dumps(content, indent=1) + "\n"))
        return self.found[key]

    def tuned(self, method: str) -> float:
        """Return the best learning rate of a method."""

        def score(lr: float) -> float:
            fields = {"every": 8, "workers": 4, "steps": STEPS, "lr": lr, **METHODS[method]}
            last = self.points("digits:0.1", TUNING, STEPS, **fields)[-1][1]
            return -math.inf if math.isnan(last) else last

        return max(RATES, key=score)


def end(runs: Runs, task: str, method: str, every: int, seed: int) -> tuple[float, float]:
    """Return the test AUC at the end of a run, and the bytes that a worker has sent."""
    fields = {"every": every, "workers": 4, "steps": STEPS, "lr": runs.tuned(method), **METHODS[method]}
    return runs.points(task, seed, STEPS, **fields)[-1][1:]


def steps_to_target(runs: Runs, workers: int, seed: int) -> float:
    """Return the steps until the target AUC, NaN where it was not reached."""
    fields = {
        "every": 8,
        "workers": workers,
        "steps": max(240, LONGEST // workers),
        "lr": RATE * workers,
        "batch": 2,
    }
    points = runs.points(SPEED_UP, seed, 16, **fields, **METHODS["auc"])
    return next((step for step, auc, _ in points if auc >= TARGET), math.nan)


def rare_rounds(runs: Runs) -> None:
    """Print method, n, MB sent by a worker, AUC, and how far that of auc at n = 64 is above it."""
    for task, methods in TASKS.items():
        ends = {
            (method, every): [end(runs, task, method, every, seed) for seed in SEEDS]
            for method, everies in methods.items()
            for every in everies
        }
        best = [auc for auc, _ in ends["auc", 64]]
        for (method, every), found in ends.items():
            aucs, sent = [auc for auc, _ in found], found[0][1]
            less = between([own - other for own, other in zip(best, aucs, strict=True)], 4, "any")
            print(f"| {task} | {method} | {every} | {sent / 1e6:.2f} | {between(aucs, 4, 'share')} | {less} |")


def speed_up(runs: Runs) -> None:
    """Print by the number of workers the steps to the target, and how many times fewer than one worker takes."""
    alone = [steps_to_target(runs, 1, seed) for seed in FEWER]
    for workers in WORKERS:
        steps = [steps_to_target(runs, workers, seed) for seed in FEWER]
        times = [one / many for one, many in zip(alone, steps, strict=True)]
        print(f"| {workers} | {between(steps, 0)} | {between(times, 2)} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    torch.set_num_threads(1)
    runs = Runs(parser.parse_args().output)
    rare_rounds(runs)
    speed_up(runs)
