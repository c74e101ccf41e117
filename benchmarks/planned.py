"""Is a plan right? Seconds of a step as `swarmstep plan --measure` says, beside training on the same network.

    sudo python benchmarks/planned.py mnist --model wide     # about 30 minutes; --links 10mbit --steps 8: about 6

Needs Linux and root; workers are in network namespaces on this machine. Data come from SWARMSTEP_DATA. Runs are
kept in benchmarks/results/planned.json; what is run again replaces its row.
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
FIRST = 4  # rounds at least before those that are timed, which test all workers
LINKS = ("10mbit", "10mbit,20ms", "100mbit", "100mbit,20ms", "1000mbit", "1000mbit,20ms")
SHOWN = ((1, "", 0), (1, "int8", 0), (16, "", 0), (16, "int8", 0), (64, "", 0), (64, "int8", 0), (64, "int8", 1))


def group(words: list[str], workers: int, link: str) -> None:
    """Run a command of swarmstep in as many namespaces."""
    with Network(workers, parse(link), 0) as network:
        outcome = run_group(words, workers, network.place(), patience=3600.0, interrupts=[], shown=True)
    if outcome.code:
        raise SystemExit(outcome.message)


def planned(workload: str, options: list[str], workers: int, link: str) -> dict[str, Any]:
    """Return what the command says of a link that it is not told."""
    with tempfile.TemporaryDirectory() as folder:
        said = Path(folder) / "plan.json"
        words = ["plan", workload, *options, "--measure", "--workers", str(workers), "--every", "1,16,64"]
        group([*words, "--out", str(said)], workers, link)
        return json.loads(said.read_text())


def trained(
    workload: str, options: list[str], price: dict[str, Any], workers: int, link: str, least: int
) -> dict[str, float]:
    """Return what a step of real training takes, from the fifth round on: the first ones test all workers."""
    with tempfile.TemporaryDirectory() as folder:
        out, first = Path(folder) / "run", max(least, FIRST * price["every"])
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
        # The last round is left out: with a delay there are no steps to hide it.
        words += [
            "--steps",
            str(2 * first + price["every"]),
            "--eval-every",
            str(first),
            "--workers",
            str(workers),
        ]
        words += ["--every", str(price["every"])] if price["method"] != "ddp" else []
        words += ["--codec", price["codec"]] if price["codec"] else []
        words += ["--delay", str(price["delay"])] if price["delay"] else []
        group(words, workers, link)
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        before, after, *_ = [row for row in rows if row["kind"] == "evaluation"]  # of which none is during a round
        steps = after["step"] - before["step"]
        done = json.loads((out / "summary.json").read_text())
        # A step's own time in the whole run: what else the machine did meanwhile is in it.
        return {
            "real_seconds": (after["seconds"] - before["seconds"]) / steps,
            "real_step_seconds": done["compute_seconds"] / done["steps"],
        }


def of(row: dict[str, Any]) -> tuple[object, ...]:
    """Return what a row is about."""
    names = ("workload", "model", "workers", "link", "method", "every", "codec")
    return (*(row[name] for name in names), row["delay"] > 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workload")
    parser.add_argument("--model")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--links", nargs="+", default=LINKS)
    parser.add_argument("--steps", type=int, default=24, help="at least, before those timed, and timed")
    given = parser.parse_args()
    options = ["--model", given.model] if given.model else []
    rows = json.loads(FILE.read_text())["rows"] if FILE.exists() else []
    for link in given.links:
        plan = planned(given.workload, options, given.workers, link)
        prices = [p for p in plan["prices"] if p["method"] == "ddp"]
        prices += [p for n, codec, late in SHOWN for p in plan["prices"][1:]
                   if (p["every"], p["codec"], min(p["delay"], 1)) == (n, codec, late)]  # fmt: skip
        for price in prices:
            real = trained(given.workload, options, price, given.workers, link, given.steps)
            where = {"workload": given.workload, "model": given.model, "workers": given.workers, "link": link}
            found = {"found": plan["link"], "step_seconds": plan["work"]["step_seconds"]}
            row = {**where, **found, **price, **real}
            rows = [*(old for old in rows if of(old) != of(row)), row]
            off = price["seconds"] / real["real_seconds"] - 1
            said = f"planned {price['seconds']:.4f} s, real {real['real_seconds']:.4f} s, {off:+.0%}"
            print(link, price["method"], price["every"], price["codec"], price["delay"], said, flush=True)
            FILE.write_text(
                json.dumps({"command": "sudo python benchmarks/planned.py", "rows": rows}, indent=1) + "\n"
            )


if __name__ == "__main__":
    main()
