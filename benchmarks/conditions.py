"""Methods under good and bad conditions: MNIST, MLP, plain SGD; the table of docs/choosing.md.

    python benchmarks/conditions.py --seeds 3 swarm
    python benchmarks/conditions.py --seeds 1 local-sgd diloco median swarm,trust=loss

Cells are kept in benchmarks/results/mnist-conditions.json; finished ones are not run again.
"""

import argparse
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from table import cell, spread

RESULTS = Path(__file__).parent / "results" / "mnist-conditions.json"
TRAINING = "--model mlp --optimizer sgd --lr 0.05 --eval-every 5000"
FOUR, EIGHT = "--workers 4 --steps 1500", "--workers 8 --steps 1000"
CONDITIONS = {
    "all is well": FOUR,
    "each sees 3 classes": f"{FOUR} --shards classes:3",
    "1 of 4 has bad labels": f"{FOUR} --shards bad-labels:1",
    "3 of 8 have bad labels": f"{EIGHT} --shards bad-labels:3",
    "1 of 4 is noisy": f"{FOUR} --fault noise:1:0.1",
    "1 of 4 has the wrong sign": f"{FOUR} --fault sign:1",
    "2 of 8 have the wrong sign": f"{EIGHT} --fault sign:2",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("methods", nargs="+")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("-j", "--jobs", type=int, default=os.cpu_count())
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    done = {(c["condition"], c["every"], c["method"], c["seed"]): c for c in known if "failed" not in c}
    wanted = [
        (condition, every, method, seed)
        for condition in CONDITIONS
        for every in (16, 32)
        for method in args.methods
        for seed in range(args.seeds)
    ]

    def run(key: tuple[str, int, str, int]) -> None:
        condition, every, method, seed = key
        options = f"{TRAINING} {CONDITIONS[condition]} --every {every}".split()
        done[key] = {"condition": condition, "every": every, **cell("mnist", method, seed, options)}
        RESULTS.write_text(json.dumps([done[k] for k in sorted(done)], indent=1) + "\n")

    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(run, [key for key in wanted if key not in done]))
    print(f"| condition | n | {' | '.join(args.methods)} |\n|{'---|' * (2 + len(args.methods))}")
    for condition in CONDITIONS:
        for every in (16, 32):
            columns = [
                spread([done[condition, every, method, seed] for seed in range(args.seeds)], "test_loss", 3)
                for method in args.methods
            ]
            print(f"| {condition} | {every} | {' | '.join(columns)} |")


if __name__ == "__main__":
    main()
