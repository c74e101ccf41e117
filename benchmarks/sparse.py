"""N:M sparsity: test errors of dense weights, one-shot pruning, STE and SR-STE, paired by seed, and mask flips.

    python benchmarks/sparse.py -o benchmarks/results/sparse.json [--seeds 3]

MNIST, the MLP 784-128-128-10, 4 workers in this process, local SGD with n = 16, 400 steps with a cosine schedule.
One-shot: the dense model of the same seed, pruned at the end. Finished cells are not run again. Prints the table.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from paired import between
from safetensors.torch import load_file

from swarmstep.sparse import NM, export
from swarmstep.train.build import resolve
from swarmstep.train.config import Config
from swarmstep.train.evaluate import evaluate
from swarmstep.train.in_process import simulated
from swarmstep.train.job import Job
from swarmstep.workloads import Workload, load

RATIOS, DECAYS = ("2:4", "1:8"), ("0", "2e-4", "2e-2")
RUN: dict[str, Any] = {"strategy": "local-sgd", "every": 16, "steps": 400, "schedule": "cosine", "model": "mlp"}


def measure(workload: Workload, seed: int, sparse: str | None) -> dict[str, dict[str, float]]:
    """Return the figures of a run by the names of its cells; of a dense one, also those of its prunings."""
    config = resolve(Config("mnist", sparse=sparse, seed=seed, eval_every=10_000, **RUN), workload)
    with tempfile.TemporaryDirectory() as folder:
        summary = simulated(config, workload, Job(out=Path(folder) / "run", quiet=True))
        weights = load_file(Path(folder) / "run" / "model.safetensors")
    kept = ("test_accuracy", "test_loss", "mask_flips")
    found = {sparse or "dense": {key: summary[key] for key in kept if key in summary}}
    for ratio in RATIOS if sparse is None else ():
        model = workload.models["mlp"]()
        model.load_state_dict(weights)
        NM(*map(int, ratio.split(":"))).prepare(model)
        score = evaluate(export(model), workload, workload.test).score
        found[f"{ratio} one-shot"] = {"test_accuracy": score.accuracy, "test_loss": score.loss}
    return found


def table(cells: dict[str, dict[str, float]], seeds: int) -> list[str]:
    """Return the lines of a table: errors in percent, what they are above the dense ones, flips a weight."""

    def errors(name: str) -> list[float]:
        return [100 * (1 - cells[f"{name} seed {seed}"]["test_accuracy"]) for seed in range(seeds)]

    lines = ["| | test error, % | above dense, % | mask flips a weight |", "|---|---|---|---|"]
    for name in ["dense", *(f"{r}{arm}" for r in RATIOS for arm in (" one-shot", *(f",{d}" for d in DECAYS)))]:
        above = [a - b for a, b in zip(errors(name), errors("dense"), strict=True)]
        flips = [cells[f"{name} seed {seed}"].get("mask_flips", 0.0) for seed in range(seeds)]
        lines.append(f"| {name} | {between(errors(name), 2)} | {between(above, 2, 'any')} | {between(flips, 3)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    workload = load("mnist")
    done: dict[str, Any] = json.loads(args.output.read_text()) if args.output.exists() else {"cells": {}}
    done["command"] = f"python benchmarks/sparse.py -o {args.output} --seeds {args.seeds}"
    for seed in range(args.seeds):
        for sparse in (None, *(f"{ratio},{decay}" for ratio in RATIOS for decay in DECAYS)):
            if f"{sparse or 'dense'} seed {seed}" not in done["cells"]:
                found = measure(workload, seed, sparse)
                done["cells"] |= {f"{name} seed {seed}": figures for name, figures in found.items()}
                args.output.write_text(json.dumps(done, indent=1) + "\n")
    print("\n".join(table(done["cells"], args.seeds)))


if __name__ == "__main__":
    main()
