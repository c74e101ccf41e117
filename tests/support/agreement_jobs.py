"""Workers that do not agree at the start, in process and in real processes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from helpers import network, probe
from swarmstep import PSOPS, Comm, Every, Independent, LocalSGD, Options, Synchronizer, Warmup


def changed(change: str) -> nn.Module:
    """Return a network that differs from `network()` as `change` says."""
    model = network()
    if change == "shape":
        model[4] = nn.Linear(8, 4)
    elif change == "dtype":
        model[4].to(torch.bfloat16)
    elif change == "frozen":
        model[4].bias.requires_grad_(False)
    elif change == "extra buffer":
        model.register_buffer("steps", torch.zeros((), dtype=torch.int64))
    elif change == "shape of a frozen parameter":
        model.frozen = nn.Parameter(torch.zeros(2), requires_grad=False)
    return model


# What rank 1 has that the others have not, and what is said.
CASES: dict[str, tuple[dict[str, Any], str]] = {
    "strategy": (
        {"strategy": Independent(when=Every(4))},
        "strategy: rank 0 has PSOPS, rank 1 has Independent",
    ),
    "hyper-parameter": ({"strategy": PSOPS(when=Every(4), social=0.7)}, "social: rank 0 has 0.5, rank 1 has 0.7"),
    "trigger": ({"strategy": PSOPS(when=Every(5))}, "when: rank 0 has Every(n=4), rank 1 has Every(n=5)"),
    "warm-up": (
        {"strategy": Warmup(PSOPS(when=Every(4)), 2)},
        "strategy: rank 0 has PSOPS, rank 1 has Warmup",
    ),
    "seed": ({"seed": 7}, "seed: rank 0 has 0, rank 1 has 7"),
    "buffers": ({"buffers": "first"}, "buffers: rank 0 has local, rank 1 has first"),
    "probe": ({"probe": None}, "probe: rank 0 has given, rank 1 has none"),
    "shape": ({"model": "shape"}, "4.weight: rank 0 has float32 [3, 8], rank 1 has float32 [4, 8]"),
    "dtype": ({"model": "dtype"}, "4.weight: rank 0 has float32 [3, 8], rank 1 has bfloat16 [3, 8]"),
    "frozen": ({"model": "frozen"}, "4.bias: rank 0 has float32 [3], rank 1 has float32 [3], not trained"),
    "extra buffer": ({"model": "extra buffer"}, "steps: rank 0 has absent, rank 1 has int64 [], not trained"),
    "extra frozen": (
        {"model": "shape of a frozen parameter"},
        "frozen: rank 0 has absent, rank 1 has float32 [2], not trained",
    ),
}


def build(comm: Comm, odd: dict[str, Any]) -> None:
    mine = odd if comm.rank == 1 else {}
    given = {"seed": 0, "buffers": None, "probe": probe, "probe_cost": 0.1}
    settings = Options(**{name: mine.get(name, value) for name, value in given.items()})
    model = changed(mine.get("model", "nothing"))
    Synchronizer(model, mine.get("strategy", PSOPS(when=Every(4))), comm, settings)


class Kinds(nn.Module):
    """Tensors of every kind that a model may hold, different on each rank."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((2,), float(rank)))
        self.frozen = nn.Parameter(torch.full((2, 3), float(rank)).t(), requires_grad=False)
        for dtype in (torch.bool, torch.int16, torch.int64, torch.float16, torch.complex64, torch.uint8):
            self.register_buffer(str(dtype).removeprefix("torch."), torch.full((3,), rank).to(dtype))
        self.register_buffer("cache", torch.zeros(rank, 3), persistent=False)  # stays each rank's own
        self.register_buffer("nothing", torch.zeros(0, 2))


def start(comm: Comm) -> dict[str, Tensor]:
    model = Kinds(comm.rank + 1)
    Synchronizer(model, LocalSGD(), comm)
    assert model.cache.shape == (comm.rank + 1, 3)
    return dict(model.state_dict())
