"""Decentralised SSFN: do 20 workers on a graph find what one finds who has all examples?

    python benchmarks/ssfn.py run        # digits and 10,000 of MNIST; what has been measured is not repeated
    python benchmarks/ssfn.py            # prints what has been measured

Central: the closed form of each layer from all examples in one place. MNIST comes from SWARMSTEP_DATA. Runs
are kept in benchmarks/results/ssfn.json.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from paired import interval

from swarmstep import simulate
from swarmstep.layerwise import SSFN, Builder, Layer, SSFNSettings, parse, ring
from swarmstep.workloads import load

FILE = Path(__file__).parent / "results" / "ssfn.json"
WORKERS, SEEDS = 20, range(3)
WIDTHS = {"digits": 50, "mnist": 200}  # random nodes of each of two layers
RINGS = ("ring:2", "ring:4", "ring:8")  # compared with the complete graph after as many iterations
SHORT = {"tolerance": 0.0, "iterations": 10}
FIXED = [{"tolerance": 0.0, "iterations": 100, "mu": mu} for mu in (0.1, 1.0, 10.0)]
DEGREES = (2, 4, 6, 8, 10, 12, 14, 16, 18)


def grow(name: str, workers: int, graph: str, seed: int, **given: Any) -> tuple[SSFN, list[Layer], float]:
    """Return rank 0's network, its layers, and the spread of the last O over the workers."""
    workload = load(name)
    train = workload.train.take(torch.arange(min(10_000, len(workload.train))))
    inputs = workload.prepare(train.inputs).flatten(1).double()
    targets = torch.nn.functional.one_hot(train.targets, 10).double()
    settings = SSFNSettings(width=WIDTHS[name], layers=2, deeper=0.0, **given)

    def work(comm: Any) -> tuple[SSFN, list[Layer], float]:
        own, among = slice(comm.rank, None, workers), None if graph == "gram" else parse(graph, workers)
        builder = Builder(settings, inputs[own], targets[own], comm, among, seed)
        while not builder.done:
            builder.add()
        return builder.network(), builder.layers, builder.spread()

    return simulate(work, workers)[0]


def compared(name: str, graph: str, seed: int, **given: Any) -> dict[str, Any]:
    """Return how a run of 20 workers differs from a central one; on a ring, from one on the complete graph."""
    test = load(name).test
    inputs = load(name).prepare(test.inputs)
    started = time.process_time()
    reference = (WORKERS, "complete", seed) if graph in RINGS else (1, "gram", seed)
    central, alone, _ = grow(name, *reference, **given)
    between = time.process_time()
    found, layers, spread = grow(name, WORKERS, graph, seed, **given)
    ended = time.process_time()
    outputs, expected = found(inputs), central(inputs)

    def accuracy(of: torch.Tensor) -> float:
        return (of.argmax(1) == test.targets).double().mean().item()

    return {
        "workload": name,
        "graph": graph,
        "seed": seed,
        "given": given,
        "accuracy": accuracy(outputs),
        "central": accuracy(expected),
        "decided_differently": int((outputs.argmax(1) != expected.argmax(1)).sum()),
        "largest_difference": float((outputs - expected).abs().max()),
        "relative_o": [
            float((a - b).norm() / b.norm()) for a, b in zip(found.learned, central.learned, strict=True)
        ],
        "relative_cost": [abs(a.cost / b.cost - 1) for a, b in zip(layers, alone, strict=True)],
        "iterations": [layer.iterations for layer in layers],
        "bytes_sent": [layer.bytes_sent for layer in layers],
        "spread": spread,
        "seconds": [between - started, ended - between],
    }


def runs() -> list[dict[str, Any]]:
    """Return what there is to measure: the arguments of `compared`."""
    rows: list[dict[str, Any]] = [{"name": n, "graph": "gram", "seed": s} for n in WIDTHS for s in SEEDS]
    rows += [{"name": "digits", "graph": graph, "seed": 0, **SHORT} for graph in RINGS]
    rows += [{"name": "digits", "graph": "complete", "seed": seed} for seed in SEEDS]
    rows += [{"name": "digits", "graph": "complete", "seed": seed, **given} for given in FIXED for seed in SEEDS]
    return rows + [{"name": "mnist", "graph": "complete", "seed": seed} for seed in SEEDS]


def show(rows: list[dict[str, Any]]) -> None:
    """Print the tables of docs/layerwise.md."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(
            (row["workload"], row["graph"], ", ".join(f"{k} {v}" for k, v in row["given"].items())), []
        ).append(row)
    print(
        "| | graph | given | seeds | test accuracy | less central, 95 % | decided differently | outputs differ by "
        "| O differs by | spread | iterations | MB sent | seconds |"
    )
    for names, of in groups.items():
        middle, half = interval([row["accuracy"] - row["central"] for row in of])
        cells = [
            *names,
            len(of),
            f"{mean(r['accuracy'] for r in of):.4f}",
            f"{middle - half:+.4f} to {middle + half:+.4f}",
            sum(r["decided_differently"] for r in of),
            f"{max(r['largest_difference'] for r in of):.1e}",
            f"{max(max(r['relative_o']) for r in of):.1e}",
            f"{max(r['spread'] for r in of):.1e}",
            f"{mean(sum(r['iterations']) for r in of):.0f}",
            f"{mean(sum(r['bytes_sent']) for r in of) / 1e6:.2f}",
            f"{mean(r['seconds'][1] for r in of):.1f}",
        ]
        print("| " + " | ".join(map(str, cells)) + " |")
    print("\nmixings of a mean, 20 workers on a ring: degree, plain, by eigenvalues")
    for degree in DEGREES:
        graph = ring(WORKERS, degree)
        print(f"| {degree} | {len(graph.shifts('repeated'))} | {len(graph.shifts())} |")


def main() -> None:
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = json.loads(FILE.read_text()) if FILE.exists() else []
    known = [{"name": r["workload"], "graph": r["graph"], "seed": r["seed"], **r["given"]} for r in rows]
    for wish in runs() if sys.argv[1:] == ["run"] else []:
        if wish not in known:
            rows.append(compared(**wish))
            FILE.write_text(json.dumps(rows, indent=1) + "\n")
            print(rows[-1], flush=True)
    show(rows)


if __name__ == "__main__":
    main()
