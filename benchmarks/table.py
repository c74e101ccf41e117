"""Run some methods over seeds and print a table: mean and standard deviation over the seeds.

    python benchmarks/table.py mnist pso-ps local-sgd synchronous --seeds 3 -- --every 16 --steps 1500

A method is NAME or NAME,setting=value,...; what follows `--` is passed to `swarmstep train`. Runs are cells of a
JSON file (-o); finished ones are not run again. As many cells run in parallel as there are cores.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


def cell(workload: str, method: str, seed: int, options: list[str]) -> dict:
    name, *settings = method.split(",")
    command = [sys.executable, "-m", "swarmstep", "train", workload, "--strategy", name, "--seed", str(seed)]
    for setting in settings:
        command += ["--set", setting]
    done = subprocess.run(
        [*command, *options, "--no-files", "--json"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        return {"method": method, "seed": seed, "failed": done.stderr.strip().splitlines()[-1]}
    summary = json.loads(done.stdout.splitlines()[-1])
    keys = (
        "test_loss",
        "test_accuracy",
        "train_loss",
        "rounds",
        "bytes_sent_per_worker",
        "seconds",
        "sync_seconds",
    )
    return {"method": method, "seed": seed, **{key: summary[key] for key in keys}}


def spread(cells: list[dict], key: str, digits: int) -> str:
    values = [c[key] for c in cells if c.get(key) is not None]
    if len(values) < len(cells) or not values:
        return "failed"
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workload")
    parser.add_argument("methods", nargs="+")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("-j", "--jobs", type=int, default=os.cpu_count())
    split = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    args, options = parser.parse_args(sys.argv[1:split]), sys.argv[split + 1 :]
    os.environ["OMP_NUM_THREADS"] = "1"
    command = " ".join(["python benchmarks/table.py", *sys.argv[1:]])
    known = json.loads(args.output.read_text())["cells"] if args.output and args.output.exists() else []
    done = {(c["method"], c["seed"]): c for c in known if "failed" not in c}
    wanted = [(method, seed) for seed in range(args.seeds) for method in args.methods]

    def run(key: tuple[str, int]) -> None:
        done[key] = cell(args.workload, *key, options)
        if args.output:
            cells = [done[k] for k in sorted(done)]
            args.output.write_text(json.dumps({"command": command, "cells": cells}, indent=1) + "\n")

    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(run, [key for key in wanted if key not in done]))
    print("| method | test accuracy | test loss | sent by a worker |\n|---|---|---|---|")
    for method in args.methods:
        cells = [done[method, seed] for seed in range(args.seeds)]
        sent = cells[0].get("bytes_sent_per_worker", 0) / 1e6
        print(
            f"| {method} | {spread(cells, 'test_accuracy', 4)} | {spread(cells, 'test_loss', 4)} | {sent:.1f} MB |"
        )


if __name__ == "__main__":
    main()
