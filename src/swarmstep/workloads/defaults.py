"""Default training settings, and the built-in workloads with theirs. Importing this does not import torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from swarmstep.errors import UsageError

Optimizer = Literal["sgd", "momentum", "adamw", "muon", "mt-dao"]
Schedule = Literal["constant", "cosine"]
Sampling = Literal["natural", "balanced"]


@dataclass(frozen=True)
class Defaults:
    """How a workload is trained unless the user says otherwise.

    Args:
        optimizer: of the local steps; "momentum" is SGD with momentum 0.9, "muon" is Muon for hidden matrices
            and AdamW for the rest, "mt-dao" is Adam with a slow momentum.
        lr: learning rate, above 0.
        batch: examples per step and worker.
        every: local steps between two rounds.
        steps: local steps of each worker in the whole run.
        weight_decay: of the optimizer, at least 0; all but SGD leave tensors of one dimension alone.
        schedule: of the learning rate, after its warm-up.
        warmup: steps in which the learning rate rises linearly from lr / warmup to lr, at least 0.
        clip: the largest norm of a worker's gradient, to which longer ones are shortened; 0: none are.
        eval_every: local steps between two evaluations.
        sampling: "natural", a worker goes through its examples in random order; "balanced", each batch has equally
            many of every class.

    Raises:
        UsageError: a value is out of its range.
    """

    optimizer: Optimizer = "momentum"
    lr: float = 0.01
    batch: int = 32
    every: int = 16
    steps: int = 1000
    weight_decay: float = 0.0
    schedule: Schedule = "constant"
    warmup: int = 0
    clip: float = 0.0
    eval_every: int = 250
    sampling: Sampling = "natural"

    def __post_init__(self) -> None:
        choices_of = {"optimizer": Optimizer, "schedule": Schedule, "sampling": Sampling}
        for name, choices in ((name, get_args(kind)) for name, kind in choices_of.items()):
            if getattr(self, name) not in choices:
                raise UsageError(f"{name} must be one of {', '.join(choices)}, found {getattr(self, name)!r}")
        least = {"batch": 1, "every": 1, "steps": 1, "eval_every": 1, "warmup": 0}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise UsageError(f"{name} must be at least {low}, found {getattr(self, name)}")
        if not 0 < self.lr < float("inf"):
            raise UsageError(f"lr must be positive and finite, found {self.lr}")
        for name in ("weight_decay", "clip"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UsageError(f"{name} must be at least 0 and finite, found {getattr(self, name)}")


class BuiltIn(NamedTuple):
    """What is known of a built-in workload without loading its module or its data.

    Args:
        defaults: `load(name).defaults`.
        models: the names in `load(name).models`; the first is the default.
    """

    defaults: Defaults
    models: tuple[str, ...]


BUILT_IN: Mapping[str, BuiltIn] = {
    "digits": BuiltIn(Defaults(lr=0.02, every=8, steps=400, eval_every=100), ("mlp",)),
    "mnist": BuiltIn(Defaults(steps=1500), ("lenet5", "mlp", "wide")),
    "cifar10": BuiltIn(
        Defaults(lr=0.05, steps=2000, weight_decay=5e-4, schedule="cosine", eval_every=500), ("resnet20", "cnn")
    ),
    "imbalanced": BuiltIn(
        Defaults(lr=0.05, every=8, steps=400, eval_every=100, sampling="balanced"), ("mlp", "linear")
    ),
    "text": BuiltIn(
        Defaults(
            optimizer="adamw",
            lr=2e-3,
            batch=8,
            steps=1500,
            weight_decay=0.1,
            schedule="cosine",
            warmup=50,
            clip=1.0,
            eval_every=500,
        ),
        ("gpt", "gpt-small", "gpt-large"),
    ),
    "spiking": BuiltIn(Defaults(optimizer="adamw", lr=1e-3, batch=64, steps=400, eval_every=100), ("leaky",)),
}
"""The built-in workloads by name; each has a module of that name beside this one."""
