"""Made-up results of comparisons, plausible and always the same: for tests of the analysis and of the report."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from swarmstep.comm.metered import Call
from swarmstep.compare.results import Cell, Point, Results
from swarmstep.network.trace import Trace
from swarmstep.train.config import Config

PARAMETERS = 1_000_000
STEPS = 640
SPACING = 40  # steps from one evaluation to the next
ENVIRONMENT = {"swarmstep": "0.1.0", "torch": "2.6.0", "python": "3.10.14", "platform": "Linux", "cpus": 2}
CONDITION: dict[str, Any] = {
    "workload": "mnist",
    "model": "lenet5",
    "workers": 4,
    "shards": "iid",
    "fault": None,
    "steps": STEPS,
    "batch": 32,
    "optimizer": "sgd",
    "weight_decay": 0.0,
    "schedule": "constant",
    "eval_every": SPACING,
}
# The final test accuracy at n = 4, what each doubling of n costs, and the steps in which the error falls e-fold.
CHARACTERS = {
    "synchronous": (0.985, 0.0, 70.0),
    "ddp": (0.985, 0.0, 70.0),
    "independent": (0.930, 0.0, 120.0),
    "local-sgd": (0.981, 0.0030, 85.0),
    "pso-ps": (0.978, 0.0060, 95.0),
    "diloco": (0.983, 0.0012, 90.0),
    "swarm": (0.984, 0.0010, 80.0),
    "swarm+codec=int8": (0.9835, 0.0011, 81.0),
}


def made_cell(method: str, every: int, seed: int, **changes: Any) -> Cell:
    """Return a cell of mnist whose values follow CHARACTERS and the seed.

    Args:
        method, every, seed: of the cell; `every` is that of the config, also for synchronous training.
        changes: fields of the cell (purpose, link, failed, trust, points ...) or of its config.
    """
    fields = {f.name for f in dataclasses.fields(Cell)}
    own = {name: value for name, value in changes.items() if name in fields}
    settings = {name: value for name, value in changes.items() if name not in fields}
    strategy, _, option = method.partition("+")
    values = {**CONDITION, "lr": 0.05, "codec": "int8" if option == "codec=int8" else None, **settings}
    config = dataclasses.asdict(Config(strategy=strategy, every=every, seed=seed, **values))
    noise = np.random.default_rng([seed, every, *method.encode()])
    compute = 0.0100 + 0.0002 * noise.random()
    if own.get("failed"):
        return Cell(own.pop("purpose", "run"), method, config, environment=ENVIRONMENT, **own)
    trace = _trace(config, payload=0.25 if config["codec"] else 1.0)
    cell = Cell(
        purpose="run",
        method=method,
        config=config,
        points=own.get("points") or _points(config, trace, noise),
        trace=trace.folded,
        parameters=PARAMETERS,
        compute_seconds=compute,
        round_seconds=0.004 if strategy == "swarm" else 0.001,
        probe_seconds=0.2 if strategy == "swarm" else 0.0,
        seconds=STEPS * compute * 4,
        environment=ENVIRONMENT,
    )
    return dataclasses.replace(cell, **own)


def _trace(config: dict[str, Any], payload: float) -> Trace:
    trace, workers, strategy = Trace(), config["workers"], config["strategy"]
    often = {"synchronous": 1, "ddp": 1, "independent": config["steps"] + 1}.get(strategy, config["every"])
    calls = [Call("gather", 16, workers), Call("mean", int(4 * PARAMETERS * payload), workers)]
    for step in range(often, config["steps"] + 1, often):
        trace.add(step, step, calls[strategy == "ddp" :])
    return trace


def _points(config: dict[str, Any], trace: Trace, noise: np.random.Generator) -> tuple[Point, ...]:
    strategy = config["strategy"]
    final, slope, pace = CHARACTERS[strategy + ("+codec=int8" if config["codec"] else "")]
    final -= slope * max(0.0, math.log2(config["every"] / 4))
    final -= 0.15 * bool(config["fault"] and strategy != "swarm")
    final += 0.0008 * noise.standard_normal()
    real, workers = config["backend"] != "sim", config["workers"]
    rounds = list(trace)
    landed = np.array([round_.landed for round_ in rounds])
    given = sum(call.bytes for round_ in rounds[:1] for call in round_.calls)
    sent = 2 * given * (workers - 1) / workers
    slowness = 1 + 0.03 * noise.random()
    points: list[Point] = []
    for step in range(0, config["steps"] + 1, SPACING):
        done = int((landed <= step).sum())
        accuracy = final - (final - 0.1) * math.exp(-step / pace) + 0.0005 * noise.standard_normal() * (step > 0)
        loss = -math.log(max(accuracy, 1e-3)) * 1.1
        seconds = (step * 0.01 + done * (0.02 + sent * 8 / 1e8)) * slowness if real else math.nan
        points.append(Point(step, seconds, done * sent, loss * 1.02, accuracy - 0.001, loss, accuracy))
    return tuple(points)


def made_results(real: bool = False) -> Results:
    """Return results of several methods, n and seeds, with tuning, failed cells and trust.

    Args:
        real: of real processes on a slow network, with seconds; else simulated ones under three conditions, one of
            them with a single seed, for two links of the virtual clock.
    """
    cells = _real() if real else [*_clean(), *_faulty(), *_single()]
    about = {
        "title": "MNIST on a slow network" if real else "MNIST, how often must workers talk?",
        "command": "swarmstep compare mnist --strategies synchronous,local-sgd,swarm --every 4,16,64 --seeds 4 "
        "--target-accuracy 0.95" + (" --backend gloo --link 100mbit,5ms" if real else ""),
        "target": {"accuracy": 0.95},
        "links": [] if real else ["100mbit,5ms", "1gbit"],
        "clock": {"compute": None, "stragglers": None, "failures": None},
    }
    return Results(about, tuple(cells))


def _clean() -> list[Cell]:
    cells = [made_cell("synchronous", 16, seed) for seed in range(4)]
    for method in ("local-sgd", "pso-ps", "diloco", "swarm", "swarm+codec=int8"):
        for every in (4, 16, 64):
            settings = {"outer_lr": "0.7", "momentum": "0.9"} if method == "diloco" else {}
            cells += [made_cell(method, every, seed, settings=settings) for seed in range(4)]
            cells += [made_cell(method, every, 100, purpose="tune", lr=lr) for lr in (0.02, 0.05, 0.1)]
    return cells


def _faulty() -> list[Cell]:
    """Signs turned by the last rank: the swarm distrusts it, one method fails, one never reaches the target."""
    wrong: dict[str, Any] = {"fault": "sign:1"}
    changes = [(16, [3]), (320, [2, 3]), (352, [3])]
    cells = [made_cell("swarm", 16, seed, trust=changes[: 3 - seed % 2 * 2], **wrong) for seed in range(3)]
    cells += [made_cell("local-sgd", 16, seed, **wrong) for seed in range(3)]
    why = "step 212: rank 3 of 4 has NaN in its weights; expected finite ones; lower --lr"
    cells += [made_cell("pso-ps", 16, seed, failed=why, **wrong) for seed in range(3)]
    cells += [made_cell("diloco", 16, seed, failed=None if seed else why, **wrong) for seed in range(3)]
    return cells


def _single() -> list[Cell]:
    return [made_cell(method, 16, 0, shards="seldp", workers=8) for method in ("local-sgd", "swarm")]


def _real() -> list[Cell]:
    place: dict[str, Any] = {"backend": "gloo", "link": "100mbit,5ms"}
    cells = [made_cell(method, 1, seed, **place) for method in ("ddp", "independent") for seed in range(3)]
    for method in ("synchronous", "local-sgd", "pso-ps", "swarm"):
        cells += [made_cell(method, every, seed, **place) for every in (16, 64) for seed in range(3)]
    return cells
