"""The folder of a run: one run at a time, whole files, nothing lost and nothing twice."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from runs import DEFAULTS, Tied, classes, resolved
from swarmstep.errors import CheckpointError
from swarmstep.train.config import Config
from swarmstep.train.job import Job
from swarmstep.train.run_folder import RunFolder, environment, new_folder, read_config, replace_file
from swarmstep.train.run_logger import RunLogger

CONFIG = resolved(classes(), {"settings": {"inertia": "0.5"}, "fault": "noise:1:0.1", "data": "/data"})


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[RunFolder]:
    folder = RunFolder(tmp_path)
    yield folder
    folder.close()


def test_the_config_comes_back(tmp_path: Path, folder: RunFolder) -> None:
    folder.write_settings(CONFIG)
    assert read_config(tmp_path) == CONFIG
    assert json.loads((tmp_path / "config.json").read_text())["lr"] == DEFAULTS.lr


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = RunFolder(tmp_path_factory.mktemp("intact"))
    folder.write_settings(CONFIG)
    folder.close()
    return (folder.path / "config.json").read_bytes()


def whole_or_refused(content: bytes, folder: Path) -> None:
    file = folder / "config.json"
    file.write_bytes(content)
    try:
        found: Config | str = read_config(folder)
    except CheckpointError as error:
        found = str(error)
    if isinstance(found, str):
        assert found.startswith(str(file))
        assert "\n" not in found
    else:
        assert found == CONFIG


@given(place=st.floats(0, 1, exclude_max=True), mask=st.integers(1, 255))
def test_a_flipped_byte_is_noticed_or_does_no_harm(
    place: float, mask: int, intact: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    content = bytearray(intact)
    content[int(place * len(content))] ^= mask
    whole_or_refused(bytes(content), tmp_path_factory.mktemp("flip"))


@given(cut=st.floats(0, 1, exclude_max=True), rest=st.binary(max_size=20))
def test_a_cut_file_is_noticed(
    cut: float, rest: bytes, intact: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    whole_or_refused(intact[: int(cut * len(intact))] + rest, tmp_path_factory.mktemp("cut"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "holds no run to resume: .*config.json: No such file"),
        ("", "config.json is damaged: Expecting value"),
        ("[" * 100_000, "config.json is damaged: "),
        ("[]", "'everything': missing or unknown"),
        ('{"steps": 5}', "'backend': missing or unknown; the run is of another version, or foreign"),
    ],
)
def test_a_foreign_config_is_refused(content: str | None, said: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=said):
        read_config(tmp_path)


def test_an_edited_config_is_refused(tmp_path: Path, folder: RunFolder) -> None:
    folder.write_settings(CONFIG)
    file = tmp_path / "config.json"
    file.write_text(file.read_text().replace('"workers": 3', '"workers": 4'))
    with pytest.raises(CheckpointError, match="damaged or was edited"):
        read_config(tmp_path)


def test_a_run_that_is_done_is_not_resumed(tmp_path: Path, folder: RunFolder) -> None:
    folder.write_settings(CONFIG)
    folder.write("summary.json", {})
    with pytest.raises(CheckpointError, match="the run is done, see its summary"):
        read_config(tmp_path)


@pytest.mark.parametrize("resume", [False, True])
def test_one_run_at_a_time(resume: bool, tmp_path: Path) -> None:
    first = RunFolder(tmp_path)
    with pytest.raises(CheckpointError, match="is in use by another process; wait for it, or end it"):
        RunFolder(tmp_path, resume=resume)
    first.append({"step": 1})
    with pytest.raises(CheckpointError, match="is in use"):
        RunFolder(tmp_path, resume=resume)
    first.close()
    if resume:
        RunFolder(tmp_path, resume=True).close()
    else:
        with pytest.raises(CheckpointError, match=r"it holds metrics.* or go on with --resume"):
            RunFolder(tmp_path)


def test_a_run_that_never_began_leaves_the_folder_free(tmp_path: Path) -> None:
    for _ in range(2):
        RunFolder(tmp_path / "a" / "b").close()


def test_folders_that_do_not_fit(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("mine")
    with pytest.raises(CheckpointError, match="file cannot be written: File exists; give another --out"):
        RunFolder(tmp_path / "file")
    with pytest.raises(CheckpointError, match="cannot be written: Not a directory"):
        RunFolder(tmp_path / "file" / "run")
    with pytest.raises(CheckpointError, match="full is in use: it holds thesis"):
        RunFolder(tmp_path / "full")
    assert sorted(path.name for path in (tmp_path / "full").iterdir()) == ["thesis.tex"]


def test_numbers_that_are_not_finite_become_null(tmp_path: Path, folder: RunFolder) -> None:
    content = {"a": math.nan, "b": [1.5, -math.inf, {"c": (math.inf,)}], "d": None}
    plain: dict[str, Any] = {"a": None, "b": [1.5, None, {"c": [None]}], "d": None}
    folder.write("x.json", content)
    folder.append(content)
    assert json.loads((tmp_path / "x.json").read_text()) == plain
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == plain


def test_rewind_keeps_what_the_checkpoint_has_seen(tmp_path: Path, folder: RunFolder) -> None:
    folder.rewind(3)
    for step in (1, 2, 3, 4, 5):
        folder.append({"kind": "round", "step": step})
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'\xff\xfe not json\n{"kind": "look"}\n[]\n{"kind": "round", "st')
    folder.rewind(3)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]


def test_the_model_with_buffers_and_tied_weights_once(tmp_path: Path, folder: RunFolder) -> None:
    model = nn.Sequential(Tied(), nn.BatchNorm1d(3))
    folder.save_model(model)
    saved = load_file(tmp_path / "model.safetensors")
    state = model.state_dict()
    assert len(saved) == len(state) - 1
    assert all(torch.equal(saved[name], state[name]) for name in saved)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "metrics.jsonl"])
def test_what_cannot_be_written_is_one_error_and_leaves_no_scraps(
    name: str, tmp_path: Path, folder: RunFolder
) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "in-the-way").touch()
    calls = {
        "config.json": lambda: folder.write_settings(CONFIG),
        "model.safetensors": lambda: folder.save_model(nn.Linear(2, 2)),
        "metrics.jsonl": lambda: folder.append({"step": 1}),
    }
    with pytest.raises(CheckpointError, match=f"{name} cannot be written: Is a directory; free space"):
        calls[name]()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["lock", name])


def test_new_folders_are_new(tmp_path: Path) -> None:
    made = [new_folder(CONFIG, tmp_path / "runs") for _ in range(3)]
    assert [path.name for path in made] == [f"classes-{CONFIG.strategy}-n4-w3-s0{end}" for end in ("", "-2", "-3")]
    assert all(path.is_dir() for path in made)
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot be made: Not a directory; give --out"):
        new_folder(CONFIG, tmp_path / "file")


def test_the_environment_is_plain_json() -> None:
    found = json.loads(json.dumps(environment()))
    assert found["torch"] == torch.__version__
    assert found["threads"] == 1


def test_a_device_is_written_to_and_not_replaced() -> None:
    device = Path("/dev/full")
    if not device.is_char_device():
        pytest.skip("no /dev/full here")
    with pytest.raises(CheckpointError, match="cannot be written: No space left"):
        replace_file(device, lambda partial: partial.write_text("x"))
    assert device.is_char_device()


def test_rows_of_several_threads_are_all_there_once(tmp_path: Path) -> None:
    logger = RunLogger(tmp_path, RunFolder(tmp_path), "a run", Job(quiet=True))
    logger.lead()

    def record(thread: int) -> None:
        for step in range(200):
            logger.record(kind="look", step=step, thread=thread)

    with ThreadPoolExecutor(4) as threads:
        assert [*threads.map(record, range(4))] == [None] * 4
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert sorted((row["thread"], row["step"]) for row in rows) == [*itertools.product(range(4), range(200))]
    assert logger.newest("look") == rows[-1]
    assert logger.newest("evaluation") == {}
    logger.close()
