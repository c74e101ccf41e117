"""The built-in workloads, and what a workload must be."""

from __future__ import annotations

import dataclasses
import gzip
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from swarmstep.errors import UsageError
from swarmstep.workloads import (
    BUILT_IN,
    Defaults,
    Examples,
    Workload,
    cifar10,
    digits,
    load,
    mnist,
    spiking,
    text,
)

PARAMETERS = {
    ("digits", "mlp"): 64 * 64 + 64 + 64 * 64 + 64 + 640 + 10,
    ("mnist", "lenet5"): 61_706,
    ("mnist", "wide"): 992_238,
    ("mnist", "mlp"): 118_282,
    ("cifar10", "resnet20"): 269_722,
    ("cifar10", "cnn"): 89_834,
    ("text", "gpt"): 829_696,
    ("text", "gpt-small"): 119_424,
    ("text", "gpt-large"): 4_807_168,
    ("spiking", "leaky"): 64 * 128 + 128 + 1280 + 10,
}
SHAPES = {"digits": (8, 8), "mnist": (28, 28), "cifar10": (3, 32, 32), "text": (64,), "spiking": (8, 8)}
MODULES = {"digits": digits, "mnist": mnist, "cifar10": cifar10, "text": text, "spiking": spiking}
EXTRAS = {"spiking": "snntorch"}  # what a workload needs besides the package


def small_data(folder: Path) -> Path:
    """Write a few examples of MNIST and CIFAR-10 in their formats."""
    raw, binary = folder / "MNIST" / "raw", folder / cifar10.FOLDER
    raw.mkdir(parents=True)
    binary.mkdir()
    for part in ("train", "t10k"):
        images = bytes((0, 0, 8, 3, 0, 0, 0, 12, 0, 0, 0, 28, 0, 0, 0, 28)) + bytes(range(12)) * 784
        labels = bytes((0, 0, 8, 1, 0, 0, 0, 12)) + bytes(i % 10 for i in range(12))
        (raw / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(labels)
    for name in cifar10.FILES:
        (binary / name).write_bytes(b"".join(bytes([i]) + bytes([i]) * 3072 for i in range(4)))
    return folder


@pytest.mark.parametrize("name", MODULES)
def test_built_in_workloads(name: str, tmp_path: Path) -> None:
    pytest.importorskip(EXTRAS.get(name, "torch"))
    workload = load(name, small_data(tmp_path))
    assert workload.name == name
    assert workload.defaults == BUILT_IN[name].defaults
    assert tuple(workload.models) == BUILT_IN[name].models
    assert workload.train.inputs.shape[1:] == SHAPES[name]
    assert workload.classes == (256 if name == "text" else 10)
    batch = workload.train.take(torch.tensor([1, 1, 0]))
    assert batch.targets.equal(workload.train.targets[[1, 1, 0]])
    inputs = workload.prepare(batch.inputs)
    assert inputs.dtype == (torch.int64 if name == "text" else torch.float32)
    assert inputs.ndim == (2 if name == "text" else 4)
    if workload.augment:
        inputs = workload.augment(inputs, torch.Generator().manual_seed(0))
    for build in workload.models.values():
        outputs = build()(inputs)
        assert outputs.shape == ((3, 25, 138) if name == "spiking" else (*batch.targets.shape, workload.classes))
        loss = workload.loss(outputs, batch.targets)
        assert loss.shape == ()
        assert loss.isfinite()
        assert workload.correct is not None
        assert 0 <= int(workload.correct(outputs, batch.targets)) <= 3


@pytest.mark.parametrize(("name", "model"), PARAMETERS)
def test_models(name: str, model: str) -> None:
    pytest.importorskip(EXTRAS.get(name, "torch"))
    build = MODULES[name].MODELS[model]
    torch.manual_seed(3)
    one = build()
    torch.manual_seed(3)
    two = build()
    parameters = list(one.parameters())
    assert sum(p.numel() for p in parameters) == PARAMETERS[name, model]
    assert all(a.equal(b) for a, b in zip(parameters, two.parameters(), strict=True))
    norms = [m for m in one.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == (19 if model == "resnet20" else 0)


def test_every_name_has_defaults_and_models() -> None:
    assert {name: workload.models for name, workload in BUILT_IN.items()} == {
        "digits": ("mlp",),
        "mnist": ("lenet5", "mlp", "wide"),
        "cifar10": ("resnet20", "cnn"),
        "imbalanced": ("mlp", "linear"),
        "text": ("gpt", "gpt-small", "gpt-large"),
        "spiking": ("leaky",),
    }


def test_digits_equal_their_origin() -> None:
    origin = pytest.importorskip("sklearn.datasets").load_digits()
    mine = digits.read()
    assert mine.inputs.numpy().tobytes() == origin.images.astype("uint8").tobytes()
    assert mine.targets.numpy().tobytes() == origin.target.astype("int64").tobytes()
    assert (origin.images == origin.images.astype("uint8")).all()


def test_digits_split() -> None:
    one, two = load("digits"), load("digits", Path("/nowhere"))
    assert (len(one.train), len(one.test)) == (1437, 360)
    assert one.test.inputs.equal(two.test.inputs)
    both = torch.cat([one.train.inputs, one.test.inputs]).flatten(1)
    whole = digits.read().inputs.flatten(1)
    assert sorted(both.tolist()) == sorted(whole.tolist())
    assert one.test.targets.bincount(minlength=10).min() >= 20
    assert (float(one.prepare(whole.view(-1, 8, 8)).min()), float(one.prepare(whole.view(-1, 8, 8)).max())) == (
        -1,
        1,
    )


def test_digits_learn() -> None:
    workload = load("digits")
    torch.manual_seed(0)
    model = workload.models["mlp"]()
    optimizer = torch.optim.SGD(model.parameters(), workload.defaults.lr, momentum=0.9)
    for step in range(150):
        batch = workload.train.take(torch.arange(step * 64, (step + 1) * 64) % len(workload.train))
        optimizer.zero_grad()
        workload.loss(model(workload.prepare(batch.inputs)), batch.targets).backward()
        optimizer.step()
    assert workload.correct is not None
    right = workload.correct(model(workload.prepare(workload.test.inputs)), workload.test.targets)
    assert int(right) / len(workload.test) > 0.9


def crop_and_flip_by_loop(images: Tensor, seed: int) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    rows, columns, flips = (torch.randint(n, (len(images), 1), generator=source) for n in (9, 9, 2))
    out = torch.zeros_like(images)
    for i, image in enumerate(images):
        padded = torch.zeros(3, 40, 40)
        padded[:, 4:36, 4:36] = image
        top, left = int(rows[i]), int(columns[i])
        crop = padded[:, top : top + 32, left : left + 32]
        out[i] = crop.flip(2) if flips[i] else crop
    return out


def test_crop_and_flip() -> None:
    images = torch.rand(64, 3, 32, 32) + 0.1
    before = images.clone()
    state = torch.get_rng_state()
    out = cifar10.crop_and_flip(images, torch.Generator().manual_seed(5))
    assert out.equal(crop_and_flip_by_loop(images, 5))
    assert torch.get_rng_state().equal(state)
    assert images.equal(before)
    assert not out.equal(cifar10.crop_and_flip(images, torch.Generator().manual_seed(6)))


def test_resnet_shortcut_subsamples_and_adds_zero_channels() -> None:
    block = cifar10._Block(2, 4).eval()
    nn.init.zeros_(block.conv2.weight)  # only the shortcut is left
    x = torch.rand(1, 2, 4, 4)
    assert block(x)[:, :2].equal(x[:, :, ::2, ::2])
    assert not block(x)[:, 2:].any()


X, Y = torch.zeros(4, 2), torch.tensor([0, 1, 2, 0])


def workload_of(train: Examples, classes: int | None = 3, models: int = 1) -> Workload:
    build = {f"m{i}": lambda: nn.Linear(2, 3) for i in range(models)}
    return Workload("mine", train, Examples(X, Y), build, Defaults(), classes)


def test_targets_that_are_no_classes_are_free() -> None:
    assert workload_of(Examples(X, X[:, 0]), classes=None).classes is None


def test_an_example_may_have_several_targets() -> None:
    assert workload_of(Examples(X, torch.stack([Y, Y], 1))).classes == 3


@pytest.mark.parametrize("name", ["loss", "accuracy"])
def test_measures_with_a_taken_name(name: str) -> None:
    with pytest.raises(UsageError, match=f"measure '{name}': the name is taken"):
        dataclasses.replace(workload_of(Examples(X, Y)), measures={name: abs})
    with pytest.raises(UsageError, match=f"measure '{name}': the name is taken"):
        dataclasses.replace(workload_of(Examples(X, Y)), averages={name: Tensor.mean})


def test_a_measure_and_an_average_of_one_name() -> None:
    with pytest.raises(UsageError, match="measure 'same': the name is taken"):
        dataclasses.replace(workload_of(Examples(X, Y)), measures={"same": abs}, averages={"same": Tensor.mean})


@pytest.mark.parametrize(
    ("train", "models", "reason"),
    [
        (Examples(X, Y), 0, "has no model"),
        (Examples(X[:0], Y[:0]), 1, "has no train examples"),
        (Examples(X, Y + 1), 1, r"train targets must be in 0\.\.2, found 1 to 3"),
        (Examples(X, Y - 1), 1, "found -1 to 1"),
        (Examples(X, Y.float()), 1, "must be int64, found torch.float32"),
        (Examples(X, torch.stack([Y, Y + 1], 1)), 1, r"train targets must be in 0\.\.2, found 0 to 3"),
    ],
)
def test_workloads_that_cannot_be(train: Examples, models: int, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        workload_of(train, models=models)


@pytest.mark.parametrize(("inputs", "targets"), [(X, Y[:3]), (X, torch.tensor(1)), (torch.tensor(1), Y)])
def test_examples_that_do_not_match(inputs: Tensor, targets: Tensor) -> None:
    with pytest.raises(UsageError, match="same first dimension"):
        Examples(inputs, targets)


@pytest.mark.parametrize(
    "change",
    [
        {"optimizer": "adam"}, {"schedule": "linear"}, {"lr": 0.0}, {"lr": float("nan")}, {"lr": float("inf")},
        {"batch": 0}, {"every": 0}, {"steps": 0}, {"eval_every": 0}, {"weight_decay": -1.0},
        {"warmup": -1}, {"clip": -0.1}, {"clip": float("inf")},
    ],
)  # fmt: skip
def test_defaults_out_of_range(change: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=next(iter(change))):
        dataclasses.replace(Defaults(), **change)
