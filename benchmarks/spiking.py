"""Does a spiking network bear rare synchronization? Test accuracy and loss by method, paired over seeds.

    python benchmarks/spiking.py --seeds 5
    python benchmarks/spiking.py --seeds 0            # prints what has been measured

Needs snnTorch, the extra `spiking`. Runs are kept in benchmarks/results/spiking.json, and never repeated.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from paired import between

from swarmstep.train.build import resolve
from swarmstep.train.config import Config
from swarmstep.train.in_process import simulated
from swarmstep.train.job import Job
from swarmstep.workloads import load

FILE = Path(__file__).parent / "results" / "spiking.json"
REFERENCE, *OTHERS = METHODS = ("synchronous", "local-sgd", "swarm", "diloco")
STEPS, EVERY, WORKERS = 128, 16, 4
KEPT = ("test_accuracy", "test_loss", "test_hidden_rate", "test_output_rate")


def run(strategy: str, seed: int) -> dict[str, Any]:
    """Train once in this process; return what is kept of it."""
    workload = load("spiking")
    config = Config("spiking", strategy, every=EVERY, workers=WORKERS, steps=STEPS, seed=seed, eval_every=STEPS)
    summary = simulated(resolve(config, workload), workload, Job(quiet=True, keep=False))
    return {"strategy": strategy, "seed": seed, **{name: summary[name] for name in KEPT}}


def show(rows: list[dict[str, Any]]) -> None:
    """Print means, and differences from synchronous training, with 95 % intervals over the seeds."""
    for strategy in METHODS:
        own = {row["seed"]: row for row in rows if row["strategy"] == strategy}
        line = [f"{strategy:12} {len(own)} seeds"]
        for name in KEPT:
            within = "positive" if name == "test_loss" else "share"
            line.append(f"{name}: {between([row[name] for row in own.values()], 4, within)}")
        for name in KEPT[:2] if strategy in OTHERS else ():
            base = {row["seed"]: row[name] for row in rows if row["strategy"] == REFERENCE}
            differences = [own[seed][name] - base[seed] for seed in own.keys() & base.keys()]
            line.append(f"{name} less synchronous's: {between(differences, 4, 'any')}")
        print("; ".join(line))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    seeds = parser.parse_args().seeds
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = json.loads(FILE.read_text())["rows"] if FILE.exists() else []
    done = {(row["strategy"], row["seed"]) for row in rows}
    for seed in range(seeds):
        for strategy in METHODS:
            if (strategy, seed) not in done:
                rows.append(run(strategy, seed))
                print(rows[-1], flush=True)
                content = {"command": f"python benchmarks/spiking.py --seeds {seeds}", "rows": rows}
                FILE.write_text(json.dumps(content, indent=0) + "\n")
    show(rows)


if __name__ == "__main__":
    main()
