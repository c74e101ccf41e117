"""Four workers, the last three times as slow: who waits, and how long it takes to a test loss.

    python benchmarks/unequal.py cifar10:cnn text:gpt-small --seeds 5          # real processes, about 40 minutes
    python benchmarks/unequal.py cifar10:cnn text:gpt-small --seeds 5 --sim    # the same in virtual time
    python benchmarks/unequal.py disturbed                                     # a worker is slower for a minute
    python benchmarks/unequal.py                                               # prints what has been measured

Real workers are paced: a step of the fast ones takes PACE seconds, so that two cores can play four machines. Runs
are kept in benchmarks/results/unequal.json and not repeated. Data come from SWARMSTEP_DATA.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from paired import between, geometric

FILE = Path(__file__).parent / "results" / "unequal.json"
SPEEDS = (1, 1, 1, 3)
# By workload: seconds of a step of the fast workers, steps, and a loss that plain local SGD reaches late.
WORKLOADS = {"cifar10:cnn": (0.1, 320, 1.65), "text:gpt-small": (0.15, 320, 2.45)}
METHODS = {
    "local-sgd": [],
    "local-sgd, by steps": ["--strategy", "local-sgd", "--balance", "steps"],
    "local-sgd, by steps, n = 64": ["--strategy", "local-sgd", "--balance", "steps", "--every", "64"],
    "local-sgd, by time, 4 s": ["--strategy", "local-sgd", "--balance", "time", "--when", "time:4"],
    "swarm, by steps": ["--strategy", "swarm", "--balance", "steps"],
    "synchronous, by batch": ["--strategy", "synchronous", "--balance", "batch"],
    "asgrad": ["--strategy", "asgrad"],
    "quorum": ["--strategy", "quorum"],
}
PLAIN = "local-sgd"


def run(workload: str, method: str, seed: int, real: bool, *options: str) -> dict[str, Any]:
    """Train once, and return what is kept of it."""
    name, _, model = workload.partition(":")
    pace, steps, _ = WORKLOADS[workload]
    words = [
        name,
        "--model",
        model,
        "--seed",
        str(seed),
        "--steps",
        str(steps),
        "--eval-every",
        str(steps // 20),
    ]
    chosen = METHODS[method] or ["--strategy", PLAIN]
    words += chosen if {"--every", "--when"} & {*chosen} else [*chosen, "--every", "32"]
    words += ["--backend", "gloo", "--pace", str(pace)] if real else []
    words += options or ["--speeds", ",".join(map(str, SPEEDS))]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [sys.executable, "-m", "swarmstep", "train", *words, "--out", str(out), "--json"]
        said = subprocess.run(command, capture_output=True, text=True, check=False)
        if said.returncode:
            raise SystemExit(f"{' '.join(command)}: {said.stderr}")
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads(said.stdout.splitlines()[-1])
    unit = 1.0 if real else pace  # virtual seconds of a step of the fast workers are 1
    return {
        "workload": workload,
        "method": method,
        "seed": seed,
        "real": real,
        "options": " ".join(options),
        "steps": summary["steps_taken"],
        "seconds": summary["seconds"] * unit,
        "test_loss": summary["test_loss"],
        "curve": [[row["seconds"] * unit, row["test_loss"]] for row in rows if row["kind"] == "evaluation"],
        "by_worker": summary["by_worker"],
        "looks": [[row["step"], [w["steps"] for w in row["by_worker"]]] for row in rows if row["kind"] == "look"],
    }


def read() -> list[dict[str, Any]]:
    """Return the runs so far."""
    return json.loads(FILE.read_text())["rows"] if FILE.exists() else []


def keep(rows: list[dict[str, Any]]) -> None:
    """Write the runs, in order."""
    rows.sort(key=lambda row: [str(row[name]) for name in ("workload", "real", "options", "method", "seed")])
    lines = ",\n".join(json.dumps(row) for row in rows)
    FILE.write_text(
        f'{{"command": "python benchmarks/unequal.py {" ".join(WORKLOADS)} --seeds 5",\n"rows": [\n{lines}\n]}}\n'
    )


def reached(row: dict[str, Any]) -> float:
    """Return the seconds of the first evaluation at which the loss of the workload is reached; NaN if none."""
    target = WORKLOADS[row["workload"]][2]
    return next((seconds for seconds, loss in row["curve"] if loss <= target), math.nan)


def used(row: dict[str, Any]) -> float:
    """Return the part of all workers' speeds together that did useful work."""
    pace = WORKLOADS[row["workload"]][0]
    return sum(w["steps"] for w in row["by_worker"]) / row["seconds"] * pace / sum(1 / speed for speed in SPEEDS)


def used_of_own(row: dict[str, Any]) -> float:
    """Return the same of the speeds that the workers had while they computed, for a method with rounds.

    A paced step takes some hundredths longer than PACE, which is not the method's doing.
    """
    own = sum(w["steps"] / w["compute_seconds"] for w in row["by_worker"])
    return sum(w["steps"] for w in row["by_worker"]) / row["seconds"] / own


HEAD = (
    "workload",
    "method",
    "seeds",
    "of the speeds' sum",
    "of their own speeds",
    "test loss",
    "s to the loss",
    "times plain's",
)


def table(rows: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Return HEAD and a line for each workload and method, over real runs; means with 95 % intervals."""
    lines: list[tuple[str, ...]] = [HEAD]
    for workload in WORKLOADS:
        of = {m: _runs(rows, workload, m) for m in METHODS}
        for method, runs in of.items():
            if not runs:
                continue
            parts, times = [used(row) for row in runs.values()], [reached(row) for row in runs.values()]
            ratios = [reached(run) / reached(of[PLAIN][seed]) for seed, run in runs.items() if seed in of[PLAIN]]
            found = geometric([x for x in ratios if not math.isnan(x)])
            ratio = between(found, 2) if method != PLAIN else ""
            losses = [row["test_loss"] for row in runs.values()]
            known = [time for time in times if not math.isnan(time)]
            seconds = (
                f"{np.mean(known):.1f}" if len(known) == len(times) else f"{len(known)} of {len(times)} reach it"
            )
            name, _, model = workload.partition(":")
            lines.append(
                (
                    f"{name}, {model}",
                    method,
                    str(len(runs)),
                    between(parts, 2, "share"),
                    between([used_of_own(row) for row in runs.values()], 2) if method != "asgrad" else "",
                    f"{np.mean(losses):.3f}",
                    seconds,
                    ratio,
                )
            )
    return lines


def clock_error(rows: Sequence[dict[str, Any]], workload: str, method: str) -> float:
    """Return the run's virtual seconds as a part of the real ones, less 1; NaN if unknown."""
    real, sim = (_runs(rows, workload, method, real) for real in (True, False))
    common = real.keys() & sim.keys()
    return float(np.mean([sim[s]["seconds"] / real[s]["seconds"] for s in common])) - 1 if common else math.nan


def _runs(
    rows: Sequence[dict[str, Any]], workload: str, method: str, real: bool = True
) -> dict[int, dict[str, Any]]:
    wanted = {"workload": workload, "method": method, "real": real, "options": ""}
    return {row["seed"]: row for row in rows if row == row | wanted}


def show() -> None:
    """Print the table, and the error of virtual time."""
    rows = read()
    for line in table(rows):
        print("| " + " | ".join(line) + " |")
    for workload in WORKLOADS:
        for method in METHODS:
            if not math.isnan(error := clock_error(rows, workload, method)):
                print(f"virtual time of {workload}, {method}: {error:+.1%}")


def disturbed() -> None:
    """Print what a worker that is five times as slow for a minute costs the others."""
    WORKLOADS["cifar10:cnn"] = (0.1, 900, 0.0)
    for method in ("asgrad", "quorum", "local-sgd, by time, 4 s", "local-sgd, by steps", "local-sgd"):
        rows = [run("cifar10:cnn", method, 0, True, *options) for options in ((), ("--disturb", "3:10-70:5"))]
        rates = [[w["steps"] / row["seconds"] for w in row["by_worker"][:3]] for row in rows]
        print(
            method,
            f"the others' steps a second, times those without: {np.sum(rates[1]) / np.sum(rates[0]):.3f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workloads", nargs="*", help=f"{', '.join(WORKLOADS)}, or disturbed")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--methods", type=lambda text: text.split(";"), default=list(METHODS))
    parser.add_argument("--sim", action="store_true", help="in virtual time")
    args = parser.parse_args()
    if args.workloads == ["disturbed"]:
        disturbed()
        return
    for seed in range(args.seeds):
        for workload in args.workloads:
            for method in args.methods:
                key = (workload, method, seed, not args.sim, "")
                rows = read()
                if key not in [
                    tuple(r[n] for n in ("workload", "method", "seed", "real", "options")) for r in rows
                ]:
                    row = run(workload, method, seed, not args.sim)
                    keep([*read(), row])
                    print(
                        workload,
                        method,
                        seed,
                        f"{used(row):.3f} {reached(row):.1f} s {row['test_loss']:.3f}",
                        flush=True,
                    )
    show()


if __name__ == "__main__":
    main()
