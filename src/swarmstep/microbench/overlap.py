"""How fast training goes beside training without communication: ``bench overlap``."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from swarmstep.comm.codecs import parse
from swarmstep.comm.data_parallel import data_parallel
from swarmstep.comm.group import Group
from swarmstep.microbench.interleaved_timing import Case, race
from swarmstep.microbench.options import checked, whole
from swarmstep.microbench.place import add_link, placed
from swarmstep.microbench.results import Report, rows_of
from swarmstep.microbench.workers import WorkerGroup
from swarmstep.runtime.options import Options
from swarmstep.runtime.synchronizer import Synchronizer
from swarmstep.strategies import LocalSGD
from swarmstep.when import Every

ALONE = "no communication"
PERIOD = 64  # of the steps timed in one turn: a multiple of every n below
DELAY = 8
BATCH = 32


class Way(NamedTuple):
    """One way to synchronize: each n-th step, late or not, coded or not."""

    n: int
    delay: int = 0
    codec: str | None = None


WAYS = {
    "n=16 float32": Way(16),
    "n=16 bfloat16": Way(16, codec="bfloat16"),
    "n=16 int8": Way(16, codec="int8"),
    "n=16 float32, delay 8": Way(16, DELAY),
    "n=16 int8, delay 8": Way(16, DELAY, "int8"),
    "n=64 float32": Way(64),
    "n=64 int8, delay 8": Way(64, DELAY, "int8"),
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    add = parser.add_argument
    add("--workers", type=whole, default=4, metavar="W", help="processes (default: 4)")
    add("--repeats", type=whole, default=5, metavar="R", help="turns, of which the median counts (default: 5)")
    add("--ddp-steps", type=whole, default=8, metavar="N", help="steps of DDP in a turn (default: 8; others: 64)")
    add_link(parser)


def lead(args: argparse.Namespace, group: WorkerGroup) -> Report:
    """Start the workers and return what they measured."""
    checked(args, workers=(2, 64), repeats=(1, 10_000), ddp_steps=(1, 10_000))
    settings = {name: getattr(args, name) for name in ("repeats", "ddp_steps", "seed")}
    with placed(args.link, args.workers) as (place, _):
        return group(args.workers, settings, place)


def work(comm: Group, settings: Mapping[str, Any]) -> Report:
    """Measure, as one of the workers."""
    steps = {ALONE: PERIOD, "ddp": settings["ddp_steps"], "ddp, bfloat16": settings["ddp_steps"]}
    steps |= dict.fromkeys(WAYS, PERIOD)
    things = {ALONE: _thing(network(settings["seed"]), PERIOD, lambda loss: None)}
    for name, short in (("ddp", False), ("ddp, bfloat16", True)):
        module = data_parallel(network(settings["seed"]), bfloat16=short)
        things[name] = _thing(module, settings["ddp_steps"], lambda loss: None)
    for name, way in WAYS.items():
        things[name] = _synchronized(way, comm, settings["seed"])
    medians = race(things, comm, settings["repeats"], warm_ups=1)
    each = {name: seconds / steps[name] for name, seconds in medians.items()}
    limits = {name: None if name == ALONE else ALONE for name in things}
    count = sum(p.numel() for p in network(0).parameters())
    return Report(rows_of(each, limits, comm.size, count))


def network(seed: int) -> nn.Module:
    """Return a small CNN with 1,015,690 parameters for images of 3 x 32 x 32."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for channels, out in ((3, 32), (32, 64), (64, 128)):
        layers += [nn.Conv2d(channels, out, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(2048, 448), nn.ReLU(), nn.Linear(448, 10))


def _thing(module: nn.Module, steps: int, after: Callable[[Tensor], object]) -> Case:
    """Return `steps` steps of training, each followed by `after(loss)`."""
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-3, momentum=0.9)
    inputs, labels = torch.randn(BATCH, 3, 32, 32), torch.randint(0, 10, (BATCH,))

    def run() -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(module(inputs), labels)
            loss.backward()
            optimizer.step()
            after(loss)

    return Case(lambda: None, run)


def _synchronized(way: Way, comm: Group, seed: int) -> Case:
    """Return `PERIOD` steps, at whose end nothing is under way: what is late has landed `DELAY` steps before."""
    module = network(seed)
    codec = parse(way.codec) if way.codec else None
    options = Options(seed=seed, delay=way.delay, codec=codec)
    synchronizer = Synchronizer(module, LocalSGD(when=Every(way.n)), comm, options)
    for _ in range(DELAY):
        synchronizer.step(0.0)
    return _thing(module, PERIOD, synchronizer.step)
