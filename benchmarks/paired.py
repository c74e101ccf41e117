"""The effect of an option on a method: accuracy with and without it, paired by seed, with a 95 % interval.

    python benchmarks/paired.py mnist local-sgd --with="--codec int8" --seeds 5 -o FILE -- --every 16 --steps 1500

Each --with is a set of options to compare with none. Cells are kept in a JSON file (-o); finished ones are not run
again.
"""

import argparse
import json
import math
import os
import shlex
import statistics
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from table import cell

from swarmstep.compare.statistics import Estimate, Range, estimate


def interval(differences: list[float]) -> tuple[float, float]:
    """Return the mean of differences, which have no bounds, and the half width of its 95 % interval."""
    mean = estimate(differences)
    return mean.mean, mean.high - mean.mean


def geometric(ratios: Sequence[float]) -> Estimate:
    """Return the geometric mean of ratios and its 95 % interval, which is made of their logarithms."""
    found = estimate([math.log(ratio) for ratio in ratios])
    return Estimate(*map(math.exp, found[:3]), found.count)


def between(values: Sequence[float] | Estimate, digits: int, within: Range = "positive") -> str:
    """Return a mean with its 95 % interval, which stays within the range of what was measured."""
    found = values if isinstance(values, Estimate) else estimate(values, within)
    mean, low, high = (f"{number:.{digits}f}" for number in found[:3])
    return f"{mean} ({low} to {high})" if found.count > 1 else mean


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workload")
    parser.add_argument("method")
    parser.add_argument("--with", action="append", dest="variants", required=True, metavar="OPTIONS")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("-j", "--jobs", type=int, default=os.cpu_count())
    end = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    args, options = parser.parse_args(sys.argv[1:end]), sys.argv[end + 1 :]
    done = json.loads(args.output.read_text()) if args.output.exists() else {"command": "", "cells": []}
    done["command"] = (
        f"python benchmarks/paired.py {args.workload} {args.method} "
        f"{' '.join(f'--with={shlex.quote(v)}' for v in args.variants)} "
        f"--seeds {args.seeds} -o {args.output} -- {shlex.join(options)}"
    )
    finished = {(c["variant"], c["seed"]): c for c in done["cells"] if "failed" not in c}
    todo = [
        (variant, seed)
        for seed in range(args.seeds)
        for variant in ("", *args.variants)
        if (variant, seed) not in finished
    ]

    def run(job: tuple[str, int]) -> None:
        variant, seed = job
        result = {"variant": variant, **cell(args.workload, args.method, seed, [*options, *shlex.split(variant)])}
        finished[job] = result
        print(result, flush=True)
        done["cells"] = [finished[key] for key in sorted(finished)]
        args.output.write_text(json.dumps(done, indent=1) + "\n")

    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(run, todo))
    for variant in args.variants:
        for name in ("test_accuracy", "test_loss"):
            pairs = [(finished["", s][name], finished[variant, s][name]) for s in range(args.seeds)]
            mean, half = interval([b - a for a, b in pairs])
            level = statistics.mean(b for _, b in pairs)
            print(f"{variant}: {name} {level:.4f}, difference {mean:+.4f} +- {half:.4f}")


if __name__ == "__main__":
    main()
