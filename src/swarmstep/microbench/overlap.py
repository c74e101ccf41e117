"""The speed of training compared with training without communication: ``bench overlap``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from swarmstep.comm.codecs import parse
from swarmstep.comm.data_parallel import data_parallel
from swarmstep.comm.group import Group
from swarmstep.microbench.checks import checked
from swarmstep.microbench.interleaved_timing import Case, interleaved_medians
from swarmstep.microbench.place import placed
from swarmstep.microbench.results import Report, rows_of
from swarmstep.microbench.settings import OverlapSettings
from swarmstep.microbench.workers import WorkerGroup
from swarmstep.runtime.options import Options
from swarmstep.runtime.synchronizer import Synchronizer
from swarmstep.strategies import LocalSGD
from swarmstep.when import Every

ALONE = "no communication"
STEPS = 64  # timed in one repeat: a multiple of every n below
DELAY = 8
BATCH = 32


class Variant(NamedTuple):
    """One way to synchronize: every n steps, with a delay or a codec."""

    n: int
    delay: int = 0
    codec: str | None = None


VARIANTS = {
    "n=16 float32": Variant(16),
    "n=16 bfloat16": Variant(16, codec="bfloat16"),
    "n=16 int8": Variant(16, codec="int8"),
    "n=16 float32, delay 8": Variant(16, DELAY),
    "n=16 int8, delay 8": Variant(16, DELAY, "int8"),
    "n=64 float32": Variant(64),
    "n=64 int8, delay 8": Variant(64, DELAY, "int8"),
}


def lead(settings: OverlapSettings, group: WorkerGroup) -> Report:
    """Start the workers and return their report."""
    checked(settings, workers=(2, 64), repeats=(1, 10_000), ddp_steps=(1, 10_000))
    of_workers = {name: getattr(settings, name) for name in ("repeats", "ddp_steps", "seed")}
    with placed(settings.link, settings.workers) as (place, _):
        return group(settings.workers, of_workers, place)


def work(comm: Group, settings: Mapping[str, Any]) -> Report:
    """Measure as one of the workers."""
    steps = {ALONE: STEPS, "ddp": settings["ddp_steps"], "ddp, bfloat16": settings["ddp_steps"]}
    steps |= dict.fromkeys(VARIANTS, STEPS)
    cases = {ALONE: _training(network(settings["seed"]), STEPS, lambda loss: None)}
    for name, short in (("ddp", False), ("ddp, bfloat16", True)):
        module = data_parallel(network(settings["seed"]), bfloat16=short)
        cases[name] = _training(module, settings["ddp_steps"], lambda loss: None)
    for name, variant in VARIANTS.items():
        cases[name] = _synchronized(variant, comm, settings["seed"])
    medians = interleaved_medians(cases, comm, settings["repeats"], warm_ups=1)
    per_step = {name: seconds / steps[name] for name, seconds in medians.items()}
    limits = {name: None if name == ALONE else ALONE for name in cases}
    count = sum(p.numel() for p in network(0).parameters())
    return Report(rows_of(per_step, limits, comm.size, count))


def network(seed: int) -> nn.Module:
    """Return a small CNN with 1,015,690 parameters for images [3, 32, 32]."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for channels, out in ((3, 32), (32, 64), (64, 128)):
        layers += [nn.Conv2d(channels, out, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(2048, 448), nn.ReLU(), nn.Linear(448, 10))


def _training(module: nn.Module, steps: int, after: Callable[[Tensor], object]) -> Case:
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


def _synchronized(variant: Variant, comm: Group, seed: int) -> Case:
    """Return `STEPS` steps of training with rounds; at their end no round is in flight."""
    module = network(seed)
    codec = parse(variant.codec) if variant.codec else None
    options = Options(seed=seed, delay=variant.delay, codec=codec)
    synchronizer = Synchronizer(module, LocalSGD(when=Every(variant.n)), comm, options)
    for _ in range(DELAY):
        synchronizer.step(0.0)
    return _training(module, STEPS, synchronizer.step)
