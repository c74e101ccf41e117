"""Damaged files of every kind through the command line: one line and a documented code, never half a load."""

from __future__ import annotations

import contextlib
import copy
import gzip
import hashlib
import io
import json
import os
import pickle
import shutil
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from examples import few
from helpers import Trainer, same
from swarmstep import PSOPS, Comm, Every, Strategy, simulate
from swarmstep.cli import main
from swarmstep.comm.codecs import parse
from swarmstep.errors import CheckpointError
from swarmstep.workloads import cifar10

TINY = ["--workers", "2", "--batch", "4", "--every", "2", "--eval-every", "100"]
Nest = Any  # of dictionaries, lists, tensors, numbers and strings


class Said(NamedTuple):
    code: int
    lines: list[str]  # on stderr, but for the progress

    @property
    def refused(self) -> bool:
        """Whether it ended in one clear line, with a code that says what kind of file is wrong."""
        *before, last = self.lines
        return (
            self.code in (2, 3, 4)
            and last.startswith("swarmstep: ")
            and not last.startswith("swarmstep: warning: ")
            and all(line.startswith("swarmstep: warning: ") for line in before)
        )


def call(*arguments: str) -> Said:
    """Run the command in this process."""
    err = io.StringIO()
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("default")
        code = main(arguments)
    lines = [line for line in err.getvalue().splitlines() if not line.startswith(("step ", "downloading "))]
    return Said(code, lines)


@pytest.fixture(scope="module", autouse=True)
def offline() -> Any:
    """Let no test reach a network."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("http_proxy", "https_proxy"):
            patch.setenv(name, "http://127.0.0.1:9")
        for name in ("no_proxy", "SWARMSTEP_DATA", "RANK", "WORLD_SIZE", "SWARMSTEP_TRACEBACK"):
            patch.delenv(name, raising=False)
        yield


class Stopped(NamedTuple):
    """A run that was stopped, and the weights it comes to when it goes on."""

    folder: Path
    weights: bytes


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Stopped:
    folder = tmp_path_factory.mktemp("run") / "run"
    given = ["--steps", "6", "--stop-at", "4", "--checkpoint-every", "2", "--out", str(folder)]
    assert call("train", "digits", "--strategy", "pso-ps", *TINY, *given).code == 130
    whole = folder.parent / "whole"
    shutil.copytree(folder, whole)
    assert call("train", "--resume", str(whole)) == Said(0, [])
    return Stopped(folder, (whole / "model.safetensors").read_bytes())


def copied(stopped: Stopped, factory: pytest.TempPathFactory) -> Path:
    folder = factory.mktemp("copy") / "run"
    shutil.copytree(stopped.folder, folder)
    return folder


def files_of(folder: Path) -> list[Path]:
    """Return the files of two steps and two ranks."""
    files = sorted((folder / "checkpoints").rglob("*.pt"))
    assert len(files) == 4
    return files


def flip(content: bytes, place: float, bit: int) -> bytes:
    changed = bytearray(content)
    changed[int(place * len(changed))] ^= 1 << bit
    return bytes(changed)


PLACE = st.floats(0, 1, exclude_max=True)
DAMAGE: st.SearchStrategy[Callable[[bytes], bytes]] = st.one_of(
    st.builds(lambda place, bit: lambda content: flip(content, place, bit), PLACE, st.integers(0, 7)),
    st.builds(lambda cut: lambda content: content[: int(cut * len(content))], PLACE),
    st.builds(lambda rest: lambda content: content + rest, st.binary(min_size=1, max_size=40)),
    st.builds(lambda rest: lambda _: rest, st.binary(max_size=200)),
)


def sealed(content: Nest) -> bytes:
    """Return a checkpoint's file, as somebody would write it who knows the format."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue() + hashlib.sha256(buffer.getvalue()).digest()


@few
@given(damage=st.dictionaries(st.integers(0, 3), DAMAGE, min_size=1))
def test_damaged_checkpoints_are_passed_over_or_refused(
    damage: dict[int, Callable[[bytes], bytes]], stopped: Stopped, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = copied(stopped, tmp_path_factory)
    for place, change in damage.items():
        file = files_of(folder)[place]
        file.write_bytes(change(file.read_bytes()))
    check_resumed(folder, stopped, lost={place // 2 for place in damage})


def check_resumed(folder: Path, stopped: Stopped, lost: set[int]) -> None:
    """Check that the run goes on from the newest step (of 0 and 1) not lost, to the same end, or is refused."""
    said = call("train", "--resume", str(folder))
    if lost == {0, 1}:
        assert said.refused
        assert not (folder / "summary.json").exists()
    else:
        assert (said.code, len(said.lines)) == (0, int(1 in lost))
        assert (folder / "model.safetensors").read_bytes() == stopped.weights


@few
@given(order=st.permutations(range(4)))
def test_swapped_checkpoints_are_passed_over_or_refused(
    order: list[int], stopped: Stopped, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = copied(stopped, tmp_path_factory)
    contents = [file.read_bytes() for file in files_of(folder)]
    for file, place in zip(files_of(folder), order, strict=True):
        file.write_bytes(contents[place])
    check_resumed(folder, stopped, lost={i // 2 for i, place in enumerate(order) if i != place})


class Attack:
    """Its pickle makes a folder when it is loaded by an unwary reader."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("kind", ["pickle", "torch", "state", "field"])
@pytest.mark.parametrize("seal", [True, False])
def test_a_pickle_that_would_run_code_is_refused(
    kind: str, seal: bool, stopped: Stopped, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = copied(stopped, tmp_path_factory)
    target = folder.parent / "executed"
    evil: Any = Attack(target)
    for file in files_of(folder):
        content = torch.load(file, weights_only=True)
        if kind == "state":
            content["state"]["model"] = evil
        written = sealed({"field": content | {"mark": evil}, "state": content}.get(kind, evil))
        if kind == "pickle":
            written = pickle.dumps(evil)
            written += hashlib.sha256(written).digest()
        file.write_bytes(written if seal else written[:-32])
    said = call("train", "--resume", str(folder))
    assert said.refused
    assert said.code == 4
    assert not target.exists()
    pickle.loads(pickle.dumps(evil))
    assert target.exists()  # the attack is one


NUMBERS = [None, -1, 2.5, 10**30, "x", "", [], {}, [1, "2"], True, "missing"]
ODD = st.sampled_from([*NUMBERS, torch.zeros(3), torch.tensor([1, 2])])


def paths(nest: Nest, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the way to each part of a nest, itself not included."""
    keys = [*nest] if isinstance(nest, dict) else [*range(len(nest))] if isinstance(nest, list) else []
    return [way for key in keys for way in [(*path, key), *paths(nest[key], (*path, key))]]


def changed(nest: Nest, way: tuple[Any, ...], value: Any) -> Nest:
    """Return a copy in which one part is another value, or is missing if that is "missing"."""
    nest = copy.deepcopy(nest)
    *path, last = way
    inner = nest
    for key in path:
        inner = inner[key]
    if isinstance(value, str) and value == "missing":
        del inner[last]
    else:
        inner[last] = value
    return nest


def other_version(way: tuple[Any, ...]) -> bool:
    """Whether a checkpoint says in this part what it is, or of which shape."""
    return way[0] != "state" or way[1:2] in (("config",), ("model",)) or len(way) == 1


@few
@given(where=PLACE, value=ODD)
def test_checkpoints_of_other_versions_are_refused_or_do_no_harm(
    where: float, value: Any, stopped: Stopped, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = copied(stopped, tmp_path_factory)
    *older, first, _ = files_of(folder)
    for file in older:
        file.unlink()
    content = torch.load(first, weights_only=True)
    ways = [way for way in paths(content) if other_version(way)]
    first.write_bytes(sealed(changed(content, ways[int(where * len(ways))], value)))
    said = call("train", "--resume", str(folder))
    if said.code == 0:  # it was free, such as the data folder, or is what it was
        assert (folder / "model.safetensors").read_bytes() == stopped.weights
    else:
        assert said.refused
        assert not (folder / "summary.json").exists()


@few
@given(damage=DAMAGE)
def test_a_damaged_config_is_refused(
    damage: Callable[[bytes], bytes], stopped: Stopped, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = copied(stopped, tmp_path_factory)
    file = folder / "config.json"
    before = file.read_bytes()
    file.write_bytes(damage(before))
    same_content = False
    with contextlib.suppress(ValueError, RecursionError):
        same_content = json.loads(file.read_bytes()) == json.loads(before)
    said = call("train", "--resume", str(folder))
    if same_content:  # another space
        assert said == Said(0, [])
    else:
        assert said.refused
        assert said.code == 4


def trained(comm: Comm, strategy: Strategy, given: dict[str, Any]) -> Trainer:
    trainer = Trainer(strategy, comm, **given)
    for _ in range(3):
        trainer.step()
    return trainer


RUNS: dict[str, tuple[Strategy, dict[str, Any]]] = {
    "plain": (PSOPS(when=Every(2)), {}),
    "coded": (PSOPS(when=Every(2)), {"codec": parse("int8")}),
    "under way": (PSOPS(when=Every(2)), {"delay": 2}),
}


@pytest.mark.parametrize("kind", RUNS)
@given(changes=st.lists(st.tuples(PLACE, ODD), min_size=1, max_size=3))
def test_a_synchronizer_loads_all_or_nothing(kind: str, changes: list[tuple[float, Any]]) -> None:
    trainer = simulate(lambda comm: trained(comm, *RUNS[kind]), 1)[0]
    saved, before = trainer.sync.state_dict(), copy.deepcopy(trainer.sync.state_dict())
    weights = trainer.weights().clone()
    trainer.step()  # so that a part that is loaded shows
    after = copy.deepcopy(trainer.sync.state_dict())
    moved = trainer.weights().clone()
    for where, value in changes:
        ways = [way for way in paths(saved) if way != ("weights",)]
        saved = changed(saved, ways[int(where * len(ways))], value)
    saved["weights"] = after["weights"]
    said = ""
    try:
        trainer.sync.load_state_dict(saved)
    except CheckpointError as error:
        said = str(error)
    assert "\n" not in said
    if said:
        assert same(trainer.sync.state_dict(), after)
    assert same(trainer.weights(), moved)
    assert not same(weights, moved)
    assert not same(before, after)


def idx(shape: tuple[int, ...], content: bytes) -> bytes:
    return bytes((0, 0, 8, len(shape))) + struct.pack(f">{len(shape)}I", *shape) + content


def mnist_files(packed: bool) -> dict[str, bytes]:
    """Return the four files of 40 and 20 images, by name."""
    files: dict[str, bytes] = {}
    for part, count in (("train", 40), ("t10k", 20)):
        files[f"{part}-images-idx3-ubyte"] = idx((count, 28, 28), bytes(i % 251 for i in range(count * 784)))
        files[f"{part}-labels-idx1-ubyte"] = idx((count,), bytes(i % 10 for i in range(count)))
    return {name + ".gz": gzip.compress(data, mtime=0) for name, data in files.items()} if packed else files


def mnist_is_whole(files: dict[str, bytes]) -> bool:
    """Whether the files are those of a small MNIST, by the description of the format alone."""
    counts: dict[str, int] = {}
    for name, data in files.items():
        if name.endswith(".gz"):
            try:
                data = gzip.decompress(data)
            except (OSError, EOFError, zlib.error, struct.error):
                return False
        item = (28, 28) if "images" in name else ()
        start = 8 + 4 * len(item)
        count = int.from_bytes(data[4:8], "big")
        if data[:start] != idx((count, *item), b"") or len(data) - start != count * (784 if item else 1):
            return False
        if not count or (not item and max(data[start:]) > 9):
            return False
        counts[name.removesuffix(".gz")] = count
    return all(
        counts[f"{part}-images-idx3-ubyte"] == counts[f"{part}-labels-idx1-ubyte"] for part in ("train", "t10k")
    )


HEADS = st.builds(
    lambda place, bit: lambda content: flip(content[:16], place, bit) + content[16:], PLACE, st.integers(0, 7)
)


@pytest.mark.parametrize("packed", [True, False])
@few
@given(which=st.integers(0, 3), damage=st.one_of(DAMAGE, HEADS), swap=st.booleans())
def test_damaged_mnist_is_refused(
    packed: bool,
    which: int,
    damage: Callable[[bytes], bytes],
    swap: bool,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    data = tmp_path_factory.mktemp("data")
    files = mnist_files(packed)
    names = list(files)
    if swap:
        files[names[which]], files[names[which - 1]] = files[names[which - 1]], files[names[which]]
    else:
        files[names[which]] = damage(files[names[which]])
    raw = data / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, content in files.items():
        (raw / name).write_bytes(content)
    check_data("mnist", data, mnist_is_whole(files), raw)


def check_data(workload: str, data: Path, whole: bool, where: Path) -> None:
    options = ("--workers", "2", "--steps", "1", "--batch", "2", "--model", {"mnist": "mlp"}.get(workload, "cnn"))
    said = call("train", workload, "--data", str(data), *options, "--no-files")
    if whole:
        assert said == Said(0, [])
    else:
        assert said.refused
        assert said.code == 3
        assert str(where) in said.lines[-1]


RECORD = 3073


@few
@given(which=st.integers(0, 5), damage=DAMAGE, label=st.integers(0, 255))
def test_damaged_cifar_is_refused(
    which: int, damage: Callable[[bytes], bytes], label: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    data = tmp_path_factory.mktemp("data")
    folder = data / cifar10.FOLDER
    folder.mkdir()
    records = b"".join(bytes([i % 10]) + bytes([i * 9]) * (RECORD - 1) for i in range(12))
    damaged = damage(records[: 5 * RECORD] + bytes([label]) + records[5 * RECORD + 1 :])
    whole = bool(damaged) and len(damaged) % RECORD == 0 and max(damaged[::RECORD]) <= 9
    for i, name in enumerate(cifar10.FILES):
        (folder / name).write_bytes(damaged if i == which else records)
    check_data("cifar10", data, whole, folder / cifar10.FILES[which])


@pytest.mark.parametrize("which", range(4))
def test_a_missing_data_file_is_named(which: int, tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    files = mnist_files(packed=True)
    missing = [*files][which]
    for name in files:
        if name != missing:
            (raw / name).write_bytes(files[name])
    said = call("train", "mnist", "--data", str(tmp_path), *TINY, "--no-files")
    assert said.refused
    assert (said.code, missing in said.lines[-1]) == (3, True)
