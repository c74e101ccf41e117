"""CIFAR-10: 50,000 + 10,000 colour images of 32x32 pixels (Krizhevsky 2009), cropped and flipped at random.

The files of the binary version lie in ``<data>/cifar-10-batches-bin``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import pad, relu

from swarmstep.workloads.base import Workload
from swarmstep.workloads.defaults import BUILT_IN
from swarmstep.workloads.download import Archive, data_folder, fetch
from swarmstep.workloads.formats import read_cifar

FOLDER = "cifar-10-batches-bin"
MIRROR = "https://www.cs.toronto.edu/~kriz"
MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
FILES = (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin")
MEAN = (0.4914, 0.4822, 0.4465)
DEVIATION = (0.2470, 0.2435, 0.2616)
PADDING = 4


class _Block(nn.Module):
    """Two 3x3 convolutions and a shortcut without parameters (option A: subsample, add zero channels)."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.stride = 1 if channels == out else 2
        self.extra = out - channels
        self.conv1 = nn.Conv2d(channels, out, 3, self.stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.extra))
        return relu(self.norm2(self.conv2(relu(self.norm1(self.conv1(x))))) + shortcut)


def resnet20() -> nn.Module:
    """Return the ResNet-20 for CIFAR of He et al. 2015 (section 4.2), with BatchNorm: 269,722 parameters."""
    widths = [16, 16, 16, 16, 32, 32, 32, 64, 64, 64]
    blocks = [_Block(a, b) for a, b in pairwise(widths)]
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), *blocks,
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model


def cnn() -> nn.Module:
    """Return a small network without BatchNorm: three convolutions, two linear layers, 89,834 parameters."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(1024, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip


MODELS: Mapping[str, Callable[[], nn.Module]] = {"resnet20": resnet20, "cnn": cnn}


def prepare(inputs: Tensor) -> Tensor:
    """Return uint8 [B, 3, 32, 32] as float32 of the same shape, normalized per channel."""
    mean = torch.tensor(MEAN, device=inputs.device).view(3, 1, 1)
    deviation = torch.tensor(DEVIATION, device=inputs.device).view(3, 1, 1)
    # Channels last in memory: a step of the small network takes 0.7 of the time on a CPU.
    return inputs.float().div(255).sub(mean).div(deviation).contiguous(memory_format=torch.channels_last)


def crop_and_flip(inputs: Tensor, source: Generator) -> Tensor:
    """Return the batch [B, C, H, W], shifted by up to 4 pixels each way and half of them mirrored.

    What is shifted in is 0, the mean colour of a prepared batch. All randomness comes from `source`, which
    may be on another device than the batch.
    """
    batch, channels, height, width = inputs.shape

    def draw(high: int) -> Tensor:
        return torch.randint(high, (batch, 1), generator=source, device=source.device).to(inputs.device)

    device = inputs.device
    rows = torch.arange(height, device=device) + draw(2 * PADDING + 1)
    columns = torch.arange(width, device=device) + draw(2 * PADDING + 1)
    columns = torch.where(draw(2) == 1, columns.flip(1), columns)
    padded = pad(inputs, (PADDING,) * 4)
    example = torch.arange(batch, device=device).view(-1, 1, 1, 1)
    channel = torch.arange(channels, device=device).view(1, -1, 1, 1)
    return padded[example, channel, rows[:, None, :, None], columns[:, None, None, :]]


def load(data: Path | None = None, mirror: str = MIRROR) -> Workload:
    """Return the workload from ``<data>/cifar-10-batches-bin``, downloading missing files from `mirror`.

    Raises DataError where files are missing and cannot be had, or are damaged.
    """
    archive = Archive(f"{mirror}/cifar-10-binary.tar.gz", MD5, FILES)
    files = fetch([archive], data_folder(data) / FOLDER)
    return Workload(
        name="cifar10",
        train=read_cifar(files[:-1]),
        test=read_cifar(files[-1:]),
        models=MODELS,
        defaults=BUILT_IN["cifar10"].defaults,
        classes=10,
        prepare=prepare,
        augment=crop_and_flip,
    )
