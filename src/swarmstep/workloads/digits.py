"""The 1,797 handwritten digits of 8x8 pixels that come with the package: no download, trained in seconds.

Origin: "Optical Recognition of Handwritten Digits", E. Alpaydin and C. Kaynak, UCI Machine Learning
Repository, 1998, https://doi.org/10.24432/C50P49, licence CC BY 4.0; the test part of that collection, which
scikit-learn distributes as `load_digits`. The pixel values, 0 to 16, are unchanged and stored as two idx
files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from swarmstep.seeding import generator
from swarmstep.workloads.base import Examples, Workload
from swarmstep.workloads.defaults import BUILT_IN
from swarmstep.workloads.formats import read_idx_pair

TEST = 360


def mlp() -> nn.Module:
    """Return the network 64-64-64-10 with ReLU: 8,970 parameters."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)
    )


MODELS: Mapping[str, Callable[[], nn.Module]] = {"mlp": mlp}


def read() -> Examples:
    """Return all digits in their original order: inputs uint8 [1797, 8, 8] in 0..16, targets int64 [1797]."""
    folder = Path(__file__).parent
    return read_idx_pair(folder / "digits-images.gz", folder / "digits-labels.gz", (8, 8), 10)


def prepare(inputs: Tensor) -> Tensor:
    """Return uint8 [B, 8, 8] in 0..16 as float32 [B, 1, 8, 8] in -1..1."""
    return inputs.unsqueeze(1).float().div(8).sub(1)


def load(data: Path | None = None) -> Workload:
    """Return the workload: 1,437 digits to train and 360 to test, always the same. `data` is not used."""
    digits = read()
    order = torch.randperm(len(digits), generator=generator("digits", "split"))
    return Workload(
        name="digits",
        train=digits.take(order[TEST:]),
        test=digits.take(order[:TEST]),
        models=MODELS,
        defaults=BUILT_IN["digits"].defaults,
        classes=10,
        prepare=prepare,
    )
