"""MNIST: 60,000 + 10,000 handwritten digits of 28x28 pixels (LeCun, Cortes and Burges).

The standard idx files, packed or not, lie in ``<data>/MNIST/raw``, as torchvision has them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor, nn

from swarmstep.workloads.base import Workload
from swarmstep.workloads.defaults import BUILT_IN
from swarmstep.workloads.download import Archive, data_folder, fetch
from swarmstep.workloads.formats import read_idx_pair

MIRROR = "https://ossci-datasets.s3.amazonaws.com/mnist"
MD5 = {
    "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
}


def lenet5() -> nn.Module:
    """Return LeNet-5 in its usual modern form: 61,706 parameters.

    As in LeCun et al. 1998 (two 5x5 convolutions of 6 and 16 channels, then 120-84-10), but with ReLU for
    tanh, max-pooling for the trained subsampling, all channels connected, and a linear layer at the end.
    """
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    )  # fmt: skip


def mlp() -> nn.Module:
    """Return the network 784-128-128-10 with ReLU: 118,282 parameters."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)
    )


def wide() -> nn.Module:
    """Return LeNet-5 with wider layers, for what a slow network costs: 992,238 parameters.

    Two 5x5 convolutions of 16 and 32 channels, one hidden layer of 620.
    """
    return nn.Sequential(
        nn.Conv2d(1, 16, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(1568, 620), nn.ReLU(), nn.Linear(620, 10),
    )  # fmt: skip


MODELS: Mapping[str, Callable[[], nn.Module]] = {"lenet5": lenet5, "mlp": mlp, "wide": wide}


def prepare(inputs: Tensor) -> Tensor:
    """Return uint8 [B, 28, 28] as float32 [B, 1, 28, 28] of about mean 0 and deviation 1."""
    return inputs.unsqueeze(1).float().div(255).sub(0.1307).div(0.3081)


def load(data: Path | None = None, mirror: str = MIRROR) -> Workload:
    """Return the workload from ``<data>/MNIST/raw``, downloading missing files from `mirror`.

    Raises DataError where files are missing and cannot be had, or are damaged.
    """
    archives = [Archive(f"{mirror}/{name}", md5, (name,)) for name, md5 in MD5.items()]
    files = fetch(archives, data_folder(data) / "MNIST" / "raw")
    return Workload(
        name="mnist",
        train=read_idx_pair(files[0], files[1], (28, 28), 10),
        test=read_idx_pair(files[2], files[3], (28, 28), 10),
        models=MODELS,
        defaults=BUILT_IN["mnist"].defaults,
        classes=10,
        prepare=prepare,
    )
