"""Small runs of the benchmark, in process or in the pool, for the tests of checkpoints, faults and records."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn

from swarmstep import Comm, simulate
from swarmstep.errors import Interrupted
from swarmstep.train.build import resolve
from swarmstep.train.config import Config
from swarmstep.train.job import Job
from swarmstep.train.lockstep_coordinator import run
from swarmstep.workloads import Defaults, Examples, Workload, load
from swarmstep.workloads.gpt import GPT
from swarmstep.workloads.text import Corpus, workload_of

ROOT = Path(__file__).parents[2]
REAL = Path(os.environ.get("SWARMSTEP_DATA") or ROOT / "../shared/data").resolve()
DEFAULTS = Defaults(optimizer="momentum", lr=0.05, batch=4, every=4, steps=14, eval_every=5)


def small() -> nn.Module:
    """Return a network with BatchNorm and dropout."""
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3))


class Tied(nn.Module):
    """Two layers that share their weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(self.first(x).relu()).relu())


class Half(nn.Module):
    """A bfloat16 body, a float32 head, and a frozen layer in front."""

    def __init__(self) -> None:
        super().__init__()
        self.front = nn.Linear(6, 6).requires_grad_(False)
        self.body = nn.Linear(6, 8).to(torch.bfloat16)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.front(x).to(torch.bfloat16)).relu().float())


MODELS = {"small": small, "tied": Tied, "half": Half, "linear": lambda: nn.Linear(6, 3)}


def jitter(inputs: Tensor, source: Generator) -> Tensor:
    return inputs + 0.1 * torch.randn(inputs.shape, generator=source)


def classes() -> Workload:
    source = torch.Generator().manual_seed(0)
    x = torch.randn(160, 6, generator=source)
    y = x[:, :3].argmax(1)
    train, test = Examples(x[:120], y[:120]), Examples(x[120:], y[120:])
    return Workload("classes", train, test, MODELS, DEFAULTS, classes=3, augment=jitter)


def regression() -> Workload:
    """Return a linear least-squares problem, which accuracy does not fit."""
    source = torch.Generator().manual_seed(0)
    x = torch.randn(120, 6, generator=source)
    y = x @ torch.arange(6.0) + 0.1 * torch.randn(120, generator=source)
    return Workload(
        "regression",
        Examples(x[:90], y[:90]),
        Examples(x[90:], y[90:]),
        {"linear": lambda: nn.Linear(6, 1)},
        Defaults(optimizer="sgd", lr=0.02, batch=5, every=2, steps=6),
        classes=None,
        loss=squared_error,
        correct=None,
    )


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    return ((outputs.squeeze(1) - targets) ** 2).mean()


def tiny() -> nn.Module:
    """Return a GPT of one layer, for which Muon has 4 matrices, and AdamW two embeddings and the norms."""
    return GPT(width=32, layers=1)


def text() -> Workload:
    """Return a made-up text, in which what comes next depends on what comes before."""
    draws = torch.randint(20, (9000,), generator=torch.Generator().manual_seed(0))
    written = bytes((97 + draws.cumsum(0) % 11 + draws % 3).tolist())
    defaults = Defaults(
        "muon", 2e-3, 4, 4, 14, weight_decay=0.1, schedule="cosine", warmup=3, clip=1.0, eval_every=5
    )
    workload = workload_of(Corpus(written[:8000], written[8000:], "0" * 64))
    return dataclasses.replace(workload, models={"tiny": tiny}, defaults=defaults)


def rare() -> Workload:
    """Return two classes of which one is rare, with a choice of objectives."""
    return dataclasses.replace(load("imbalanced"), defaults=dataclasses.replace(DEFAULTS, sampling="balanced"))


WORKLOADS = {"classes": classes, "regression": regression, "text": text, "rare": rare}


def resolved(workload: Workload, fields: dict[str, Any]) -> Config:
    return resolve(Config(**{"workload": workload.name, "workers": 3, **fields}), workload)


def one(comm: Comm, name: str, fields: dict[str, Any], out: str | None, job: dict[str, Any]) -> dict[str, Any]:
    """Be one worker; return the summary, or the line with which the run was interrupted."""
    workload = WORKLOADS[name]()
    config = resolved(workload, {**fields, "workers": comm.size})
    wish = Job(out=Path(out) if out else None, quiet=True, keep=bool(out), **job)
    try:
        return run(config, workload, comm, wish)
    except Interrupted as error:
        return {"interrupted": str(error)}


def train(fields: dict[str, Any], out: Path | None, name: str = "classes", **job: Any) -> dict[str, Any]:
    """Run all workers in process."""
    workers = fields.get("workers", 3)
    virtual = bool({"speeds", "jitter", "disturb"} & fields.keys())
    return simulate(
        lambda comm: one(comm, name, fields, str(out) if out else None, job), workers, virtual_time=virtual
    )[0]


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def rows(folder: Path) -> list[dict[str, Any]]:
    """Return metrics.jsonl without what a clock measured."""
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return _unclocked(found)


def _unclocked(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _unclocked(v) for k, v in value.items() if not k.endswith("seconds")}
    return [*map(_unclocked, value)] if isinstance(value, list) else value


def report(folder: Path) -> dict[str, Any]:
    """Return summary.json without what a clock measured, and where it was."""
    summary = json.loads((folder / "summary.json").read_text())
    return {k: v for k, v in _unclocked(summary).items() if k not in ("out", "backend")}


def same_run(one: Path, other: Path) -> None:
    assert weights(one) == weights(other)
    assert rows(one) == rows(other)
    assert report(one) == report(other)
