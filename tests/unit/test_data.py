"""The file formats: whole files are read exactly, every kind of damage is one DataError."""

from __future__ import annotations

import gzip
import hashlib
import os
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from swarmstep.errors import DataError
from swarmstep.workloads import cifar10, mnist
from swarmstep.workloads.formats import read_cifar, read_idx, read_idx_pair

UNUSED = "http://unused.invalid"
REAL = Path(os.environ.get("SWARMSTEP_DATA") or Path(__file__).parents[2] / "../shared/data")


def idx(shape: tuple[int, ...], content: bytes, magic: bytes | None = None) -> bytes:
    return (magic or bytes((0, 0, 8, len(shape)))) + struct.pack(f">{len(shape)}I", *shape) + content


IMAGES = idx((3, 2, 2), bytes(range(12)))
LABELS = idx((3,), bytes((0, 9, 4)))


def write(file: Path, content: bytes) -> Path:
    file.write_bytes(gzip.compress(content) if file.suffix == ".gz" else content)
    return file


def one_line(error: pytest.ExceptionInfo[DataError], *parts: object) -> None:
    text = str(error.value)
    assert "\n" not in text
    for part in parts:
        assert str(part) in text


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_pair(tmp_path: Path, suffix: str) -> None:
    images, labels = write(tmp_path / f"images{suffix}", IMAGES), write(tmp_path / f"labels{suffix}", LABELS)
    examples = read_idx_pair(images, labels, (2, 2), 10)
    assert examples.inputs.dtype == torch.uint8
    assert examples.inputs.equal(torch.arange(12, dtype=torch.uint8).view(3, 2, 2))
    assert examples.targets.equal(torch.tensor([0, 9, 4]))


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "found an empty file"),
        (IMAGES[:3], "magic number 00000803, found 000008"),
        (LABELS, "magic number 00000803, found 00000801"),
        (idx((3, 2, 2), bytes(48), b"\0\0\x0d\3"), "found 00000d03"),
        (IMAGES[:10], r"found \(3, 0"),
        (IMAGES[:-1], "expected 12 bytes after the header, found 11"),
        (IMAGES + b"\0", "expected 12 bytes after the header, found 13"),
        (idx((2**32 - 1, 2, 2), bytes(12)), "found 12"),
        (idx((0, 2, 2), b""), r"expected a shape of \(N, 2, 2\), found \(0, 2, 2\)"),
        (idx((3, 4, 1), bytes(12)), r"found \(3, 4, 1\)"),
    ],
)
def test_damaged_idx(tmp_path: Path, suffix: str, content: bytes, reason: str) -> None:
    file = write(tmp_path / f"images{suffix}", content)
    with pytest.raises(DataError, match=reason) as error:
        read_idx(file, (2, 2))
    one_line(error, file, "replace the file")


@pytest.mark.parametrize(
    "damage",
    [
        lambda packed: packed[:-9],
        lambda packed: packed[:12],
        lambda packed: packed[:12] + bytes([packed[12] ^ 255]) + packed[13:],
        lambda packed: packed + b"rubbish",
        lambda packed: b"no gzip at all",
    ],
)
def test_damaged_gzip(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    file = tmp_path / "images.gz"
    file.write_bytes(damage(gzip.compress(IMAGES)))
    with pytest.raises(DataError, match="cannot be read") as error:
        read_idx(file, (2, 2))
    one_line(error, file)


def test_idx_labels_are_checked(tmp_path: Path) -> None:
    images, labels = write(tmp_path / "images", IMAGES), write(tmp_path / "labels", idx((3,), bytes((0, 10, 4))))
    with pytest.raises(DataError, match="expected labels 0 to 9, found 10 at example 1") as error:
        read_idx_pair(images, labels, (2, 2), 10)
    one_line(error, labels)
    write(labels, idx((2,), bytes(2)))
    with pytest.raises(DataError, match=r"holds 3 images but .* holds 2 labels"):
        read_idx_pair(images, labels, (2, 2), 10)


def test_a_missing_file_is_a_data_error(tmp_path: Path) -> None:
    for read in (partial(read_idx, tmp_path / "none", ()), partial(read_cifar, [tmp_path / "none"])):
        with pytest.raises(DataError, match=r"none: cannot be read"):
            read()


def record(label: int, value: int) -> bytes:
    return bytes([label]) + bytes([value]) * 1024 + bytes([value + 1]) * 1024 + bytes([value + 2]) * 1024


def test_cifar_records(tmp_path: Path) -> None:
    one = write(tmp_path / "1.bin", record(3, 10) + record(9, 20))
    two = write(tmp_path / "2.bin", record(0, 30))
    examples = read_cifar([one, two])
    assert examples.inputs.shape == (3, 3, 32, 32)
    assert examples.inputs.dtype == torch.uint8
    assert examples.inputs[:, :, 31, 0].tolist() == [[10, 11, 12], [20, 21, 22], [30, 31, 32]]
    assert examples.targets.tolist() == [3, 9, 0]
    assert examples.take(torch.tensor([2, 0])).inputs[:, 0, 0, 0].tolist() == [30, 10]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "3073-byte records, found 0 bytes"),
        (record(1, 0)[:-1], "found 3072 bytes"),
        (record(1, 0) + b"\0", "found 3074 bytes"),
        (record(1, 0) + record(10, 0), "expected labels 0 to 9, found 10 at example 1"),
    ],
)
def test_damaged_cifar(tmp_path: Path, content: bytes, reason: str) -> None:
    file = write(tmp_path / "test_batch.bin", content)
    with pytest.raises(DataError, match=reason) as error:
        read_cifar([write(tmp_path / "good.bin", record(1, 1)), file])
    one_line(error, file)


needs_mnist = pytest.mark.skipif(not (REAL / "MNIST/raw").is_dir(), reason=f"no MNIST/raw in {REAL}")
needs_cifar = pytest.mark.skipif(not (REAL / cifar10.FOLDER).is_dir(), reason=f"no {cifar10.FOLDER} in {REAL}")


@needs_mnist
def test_real_mnist_is_the_official_one() -> None:
    workload = mnist.load(REAL, UNUSED)
    assert workload.train.inputs.shape == (60_000, 28, 28)
    assert workload.test.inputs.shape == (10_000, 28, 28)
    sums = [
        hashlib.md5(idx(tuple(tensor.shape), tensor.to(torch.uint8).numpy().tobytes())).hexdigest()
        for part in (workload.train, workload.test)
        for tensor in (part.inputs, part.targets)
    ]
    assert sums == [
        "6bbc9ace898e44ae57da46a324031adb",
        "a25bea736e30d166cdddb491f175f624",
        "2646ac647ad5339dbf082846283269ea",
        "27ae3e4e09519cfbb04c329615203637",
    ]
    pixels = workload.prepare(workload.train.inputs)
    assert abs(float(pixels.mean())) < 1e-3
    assert abs(float(pixels.std()) - 1) < 1e-3


@needs_cifar
def test_real_cifar_has_its_classes_and_colours() -> None:
    workload = cifar10.load(REAL, UNUSED)
    assert workload.train.targets.bincount().tolist() == [5000] * 10
    assert workload.test.targets.bincount().tolist() == [1000] * 10
    planes = [workload.train.inputs[:, channel].contiguous().flatten() for channel in range(3)]
    counts = [plane.bincount(minlength=256).double() for plane in planes]
    means = [float((count * torch.arange(256)).sum() / count.sum() / 255) for count in counts]
    assert means == pytest.approx([0.4914, 0.4822, 0.4465], abs=5e-5)
