"""Is a plan right? Seconds of a step as `swarmstep plan --measure` says, beside training on the same network.

    sudo python benchmarks/planned.py mnist --model wide --links 100mbit 20mbit,20ms     # about 10 minutes

Needs Linux and root; workers are in network namespaces on this machine. Data come from SWARMSTEP_DATA. Runs are
kept in benchmarks/results/planned.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from swarmstep.launch.processes import run_group
from swarmstep.network.link import parse
from swarmstep.network.namespaces import Network

FILE = Path(__file__).parent / "results" / "planned.json"
LEAST, FIRST = 24, 4  # steps at least, and rounds, before those that are timed
SHOWN = ((1, "", 0), (8, "", 0), (32, "", 0), (32, "int8", 0), (32, "int8", 1), (128, "int8", 1))


def group(words: list[str], workers: int, link: str) -> None:
    """Run a command of swarmstep in as many namespaces."""
    with Network(workers, parse(link), 0) as network:
        outcome = run_group(words, workers, network.place(), patience=3600.0, interrupts=[], shown=True)
    if outcome.code:
        raise SystemExit(outcome.message)


def trained(workload: str, options: list[str], price: dict[str, Any], workers: int, link: str) -> float:
    """Return the seconds of a step of real training, from the fifth round on: the first ones test all workers."""
    with tempfile.TemporaryDirectory() as folder:
        out, first = Path(folder) / "run", max(LEAST, FIRST * price["every"])
        steps = 2 * first
        words = [
            "train",
            workload,
            *options,
            "--strategy",
            price["method"],
            "--out",
            str(out),
            "--backend",
            "gloo",
        ]
        words += ["--steps", str(steps), "--eval-every", str(first), "--workers", str(workers)]
        words += ["--every", str(price["every"])] if price["method"] != "ddp" else []
        words += ["--codec", price["codec"]] if price["codec"] else []
        words += ["--delay", str(price["delay"])] if price["delay"] else []
        group(words, workers, link)
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        # With a delay the first one waits for a round under way.
        before, *_, after = [row for row in rows if row["kind"] == "evaluation"]
        return (after["seconds"] - before["seconds"]) / (after["step"] - before["step"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workload")
    parser.add_argument("--model")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--links", nargs="+", default=["100mbit", "20mbit,20ms"])
    given = parser.parse_args()
    options = ["--model", given.model] if given.model else []
    rows = json.loads(FILE.read_text())["rows"] if FILE.exists() else []
    for link in given.links:
        with tempfile.TemporaryDirectory() as folder:
            said = Path(folder) / "plan.json"
            words = [
                "plan",
                given.workload,
                *options,
                "--measure",
                "--workers",
                str(given.workers),
                "--out",
                str(said),
            ]
            group(words, given.workers, link)
            plan = json.loads(said.read_text())
        prices = [p for p in plan["prices"] if p["method"] == "ddp"]
        prices += [p for n, codec, late in SHOWN for p in plan["prices"][1:]
                   if (p["every"], p["codec"], min(p["delay"], 1)) == (n, codec, late)]  # fmt: skip
        for price in prices:
            real = trained(given.workload, options, price, given.workers, link)
            row = {"workload": given.workload, "model": given.model, "link": link, "found": plan["link"], **price}
            rows.append({**row, "real_seconds": real})
            said = f"planned {price['seconds']:.4f} s, real {real:.4f} s, {price['seconds'] / real - 1:+.0%}"
            print(link, price["method"], price["every"], price["codec"], price["delay"], said, flush=True)
            FILE.write_text(
                json.dumps({"command": "sudo python benchmarks/planned.py", "rows": rows}, indent=1) + "\n"
            )


if __name__ == "__main__":
    main()
