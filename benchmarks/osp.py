"""OSP's steps per second on a real slow link, next to DDP's: needs Linux and root.

    PACED_SECONDS=0.5 python benchmarks/osp.py --model first ddp synchronous osp:share=0.5 osp:share=0.8,auto=true

Trains a model of benchmarks/paced_workload.py in 4 processes, each in a network namespace. Prints a line for each
method: seconds of a step (of training, divided by the steps), steps a second, test accuracy and loss, the load.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path

from swarmstep.launch.processes import run_group
from swarmstep.network.link import parse
from swarmstep.network.namespaces import Network

WORKERS = 4
WORKLOAD = Path(__file__).with_name("paced_workload.py")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="+", metavar="NAME[:SETTING=VALUE,...]")
    parser.add_argument("--model", default="first")
    parser.add_argument("--link", default="100mbit")
    parser.add_argument("--steps", type=int, default=25)
    given = parser.parse_args()
    print(" ".join(f"{name}={value}" for name, value in vars(given).items() if name != "methods"), flush=True)
    for method in given.methods:
        step, accuracy, loss = measure(method, given)
        speed = f"{step:.3f} s/step {1 / step:.3f} steps/s"
        load = os.getloadavg()[0]
        print(f"{method:30} {speed}  accuracy {accuracy:.4f} loss {loss:.4f}  load {load:.1f}", flush=True)


def measure(method: str, given: argparse.Namespace) -> tuple[float, float, float]:
    """Return seconds of a step, test accuracy and test loss of a run."""
    name, _, settings = method.partition(":")
    with tempfile.TemporaryDirectory() as folder, Network(WORKERS, parse(given.link), 0) as network:
        out = Path(folder) / "run"
        words = ["train", f"{WORKLOAD}:workload", "--model", given.model, "--strategy", name, "--backend", "gloo"]
        words += [word for setting in settings.split(",") if setting for word in ("--set", setting)]
        words += ["--workers", str(WORKERS), "--steps", str(given.steps), "--eval-every", str(given.steps)]
        outcome = run_group([*words, "--out", str(out)], WORKERS, network.place(), patience=3600.0, interrupts=[])
        if outcome.code:
            raise SystemExit(outcome.message)
        summary = json.loads((out / "summary.json").read_text())
    return summary["seconds"] / given.steps, summary["test_accuracy"], summary["test_loss"]


if __name__ == "__main__":
    main()
