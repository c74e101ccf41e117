"""Whom the swarm leaves out, by seed: false alarms among the honest, and how early a bad worker is found.

    python benchmarks/trust.py digits --seeds 20
    python benchmarks/trust.py digits --seeds 5 --bad 1 -- --shards bad-labels:1
    python benchmarks/trust.py mnist --first 11 --seeds 1 -- --model mlp --steps 800 --shards classes:3

MNIST needs its data in SWARMSTEP_DATA. What follows `--` is passed to `swarmstep train`; it has 4 workers unless
told otherwise. One core.
"""

import argparse
import contextlib
import io
import json
import statistics
import sys
import tempfile
from pathlib import Path

import torch

from swarmstep.cli import main as command

torch.set_num_threads(1)


def rounds_of(arguments: list[str]) -> tuple[dict, list[dict]]:
    """Return the summary of a run and its rounds, as the run's folder has them."""
    with tempfile.TemporaryDirectory() as folder:
        said, out = io.StringIO(), Path(folder) / "run"
        with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
            command(["train", *arguments, "--out", str(out), "--json"])
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        return json.loads(said.getvalue().splitlines()[-1]), [row for row in rows if row["kind"] == "round"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workload")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--bad", type=int, default=0, help="how many of the last ranks are bad")
    end = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    args, options = parser.parse_args(sys.argv[1:end]), sys.argv[end + 1 :]
    print("| seed | test loss | rounds | rounds each rank is left out of | from step | honest ones because |")
    print("|---" * 6 + "|")
    losses, honest = [], []
    for seed in range(args.first, args.first + args.seeds):
        summary, rounds = rounds_of([args.workload, "--seed", str(seed), *options])
        workers = len(rounds[0]["losses"])
        out = [
            [(row["step"], d["why"]) for row in rounds for d in row["distrusted"] if d["rank"] == rank]
            for rank in range(workers)
        ]
        found = " ".join(str(rows[0][0] if rows else "never") for rows in out[workers - args.bad :])
        honest += [len(rows) / len(rounds) for rows in out[: workers - args.bad]]
        losses.append(summary["test_loss"])
        counts = " ".join(str(len(rows)) for rows in out)
        reasons = {why.split(" by ")[0].split(" (")[0] for rows in out[: workers - args.bad] for _, why in rows}
        print(
            f"| {seed} | {losses[-1]:.4f} | {len(rounds)} | {counts} | {found} | {'; '.join(sorted(reasons))} |",
            flush=True,
        )
    wronged = sum(share > 0.01 for share in honest)
    print(f"mean test loss {statistics.mean(losses):.4f}")
    print(
        f"{wronged} of {len(honest)} honest workers are left out of more than 1 %, the worst of {max(honest):.0%}"
    )


if __name__ == "__main__":
    main()
