"""Checkpoints: all or nothing, read as data, and the last good one survives."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import re
import threading
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

import swarmstep.checkpoint.saver as saver_module
from examples import few
from helpers import same
from jobs import Gate
from swarmstep import Comm, simulate
from swarmstep.checkpoint.loader import load, load_any, newest, read
from swarmstep.checkpoint.saver import Saver, save
from swarmstep.errors import CheckpointError

SIZE = 3


def state(step: int, rank: int) -> dict[str, Any]:
    weights = torch.full((50,), float(step)) + rank
    return {"weights": weights, "half": weights.bfloat16(), "name": "x", "nested": {"list": [1, 2.5, None, True]}}


def write(folder: Path, *steps: int, keep: int = 2, size: int = SIZE) -> None:
    def worker(comm: Comm) -> None:
        for step in steps:
            save(folder, step, state(step, comm.rank), comm, keep)

    simulate(worker, size)


def restore(folder: Path, size: int = SIZE) -> list[Any]:
    """Return what each rank loads, or the error it meets."""

    def worker(comm: Comm) -> Any:
        try:
            return load(folder, comm)
        except CheckpointError as error:
            return error

    return simulate(worker, size)


def file_of(folder: Path, step: int, rank: int) -> Path:
    return folder / f"step-{step:08d}" / f"rank-{rank:05d}.pt"


def held(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def at_step(folder: Path, step: int) -> bool:
    return same(restore(folder), [state(step, rank) for rank in range(SIZE)])


def sealed(content: bytes) -> bytes:
    return content + hashlib.sha256(content).digest()


def test_every_rank_gets_its_own_back(tmp_path: Path) -> None:
    write(tmp_path, 7)
    assert at_step(tmp_path, 7)


def test_older_ones_make_room_once_all_have_the_new_one(tmp_path: Path) -> None:
    write(tmp_path, 1, 2, 3)
    assert held(tmp_path) == [f"step-{step:08d}/rank-{rank:05d}.pt" for step in (2, 3) for rank in range(SIZE)]
    write(tmp_path, 4, keep=1)
    assert {name[:13] for name in held(tmp_path)} == {"step-00000004"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000004"]


def test_a_disk_for_each_rank(tmp_path: Path) -> None:
    def worker(comm: Comm) -> Any:
        folder = tmp_path / str(comm.rank)
        save(folder, 5, state(5, comm.rank), comm)
        return load(folder, comm)

    assert same(simulate(worker, SIZE), [state(5, rank) for rank in range(SIZE)])


@pytest.mark.parametrize("damage", ["truncated", "empty", "missing", "folder", "flipped"])
@pytest.mark.parametrize("rank", range(SIZE))
def test_the_older_one_is_taken_where_the_newest_is_not_whole(damage: str, rank: int, tmp_path: Path) -> None:
    write(tmp_path, 10, 20)
    newest = file_of(tmp_path, 20, rank)
    content = bytearray(newest.read_bytes())
    newest.unlink()
    if damage == "folder":
        newest.mkdir()
    elif damage != "missing":
        content[len(content) // 2] ^= 1
        newest.write_bytes({"truncated": content[:-1], "empty": b"", "flipped": content}[damage])
    said = f"step 20 is not there on all ranks; going back to step 10|{newest.name}: .*; going back to step 10"
    with pytest.warns(UserWarning, match=said) as warned:
        assert at_step(tmp_path, 10)
    assert len(warned) == 1


def test_what_a_run_went_back_from_is_removed_and_never_the_last_good_one(tmp_path: Path) -> None:
    write(tmp_path, 10, 20, 30, keep=3)
    for step in (20, 30):
        file_of(tmp_path, step, 0).write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="going back to step 10"):
        assert at_step(tmp_path, 10)
    write(tmp_path, 15)
    assert {name[:13] for name in held(tmp_path)} == {"step-00000010", "step-00000015"}
    assert at_step(tmp_path, 15)


def test_all_ranks_hear_the_same_when_all_are_damaged(tmp_path: Path) -> None:
    write(tmp_path, 10, 20)
    for step in (10, 20):
        file_of(tmp_path, step, 1).write_bytes(b"damaged")
    said = {str(error) for error in restore(tmp_path)}
    assert len(said) == 1
    assert re.search(r"step-00000020/rank-00001.pt: half-written, damaged", said.pop())


def test_nothing_to_load(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        assert {type(error) for error in restore(folder)} == {CheckpointError}
    write(tmp_path / "two", 3, size=2)
    assert {str(error) for error in restore(tmp_path / "two")} == {
        f"{file_of(tmp_path / 'two', 3, 0)}: size: expected 3, found 2"
    }


def test_names_that_only_look_like_steps_are_left_alone(tmp_path: Path) -> None:
    write(tmp_path, 10)
    for name in ("step-1", "step-00000099x", "step-" + "9" * 30, "notes"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-00000030").write_text("a file")
    (tmp_path / "step-00000040").mkdir()
    assert at_step(tmp_path, 10)


def test_a_crash_while_writing_leaves_the_older_one(tmp_path: Path) -> None:
    write(tmp_path, 10)
    partial = file_of(tmp_path, 20, 0).with_suffix(".partial")
    partial.parent.mkdir()
    partial.write_bytes(b"half")
    assert at_step(tmp_path, 10)
    write(tmp_path, 20, 30, 40)
    assert not partial.exists()
    assert {path.name for path in tmp_path.iterdir()} == {"step-00000030", "step-00000040"}


@pytest.mark.parametrize("rank", range(SIZE))
def test_one_rank_that_cannot_write_fails_all_and_costs_nothing(rank: int, tmp_path: Path) -> None:
    write(tmp_path, 10, 20)
    before = held(tmp_path)
    blocked = file_of(tmp_path, 30, rank).with_suffix(".partial")
    blocked.mkdir(parents=True)

    def worker(comm: Comm) -> str:
        with pytest.raises(CheckpointError) as error:
            save(tmp_path, 30, state(30, comm.rank), comm)
        return str(error.value)

    said = set(simulate(worker, SIZE))
    assert len(said) == 1
    assert f"rank-{rank:05d}.pt: cannot be written (" in said.pop()
    blocked.rmdir()
    assert held(tmp_path) == before
    assert at_step(tmp_path, 20)


class Attack:
    """Its pickle makes a folder when it is loaded by an unwary reader."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("kind", ["pickle", "torch", "legacy", "field"])
@pytest.mark.parametrize("seal", [True, False])
def test_a_foreign_pickle_is_refused_and_not_run(kind: str, seal: bool, tmp_path: Path) -> None:
    write(tmp_path, 10, size=1)
    file, target = file_of(tmp_path, 10, 0), tmp_path / "executed"
    evil: Any = Attack(target)
    if kind == "field":
        evil = torch.load(file, weights_only=True) | {"state": {"weights": evil}}
    buffer = io.BytesIO(pickle.dumps(evil))
    if kind != "pickle":
        torch.save(evil, buffer, _use_new_zipfile_serialization=kind != "legacy")
    file.write_bytes(sealed(buffer.getvalue()) if seal else buffer.getvalue())
    (error,) = restore(tmp_path, 1)
    assert ("not a swarmstep checkpoint" if seal else "half-written, damaged or foreign") in str(error)
    assert "\n" not in str(error)
    assert not target.exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (torch.zeros(3), "expected a dictionary"),
        ({"format": None}, r"not a swarmstep checkpoint \(format: None\)"),
        (
            {"format": "swarmstep checkpoint 2"},
            "of an older layout: expected 3, found 2; resume with the version of",
        ),
        ({"format": "swarmstep checkpoint 4"}, "of another layout: expected 3, found 4"),
        ({"step": 11}, "step: expected 10, found 11"),
        ({"step": torch.tensor([10, 10])}, r"step: expected 10, found tensor\(\[10, 10\]\)"),
        ({"rank": 1}, "rank: expected 0, found 1"),
        ({"size": 10.0}, "size: expected 1, found 10.0"),
        ({"state": [1]}, "state: expected a dictionary, found list"),
    ],
    ids=str,
)
def test_a_field_that_differs_is_named(content: Any, said: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    good = {"format": "swarmstep checkpoint 3", "step": 10, "rank": 0, "size": 1, "mark": "", "state": {}}
    buffer = io.BytesIO()
    torch.save(good | content if isinstance(content, dict) else content, buffer)
    file.write_bytes(sealed(buffer.getvalue()))
    with pytest.raises(CheckpointError, match=said):
        read(file, 10, 0, 1)


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("intact")
    write(folder, 10, size=1)
    return file_of(folder, 10, 0).read_bytes()


def whole_or_refused(content: bytes, folder: Path) -> None:
    file = folder / "file"
    file.write_bytes(content)
    try:
        found: Any = read(file, 10, 0, 1)
    except CheckpointError as error:
        found = str(error)
    if isinstance(found, str):
        assert found.startswith(f"{file}: ")
        assert "\n" not in found
    else:
        assert same(found, state(10, 0))


@given(place=st.floats(0, 1, exclude_max=True), mask=st.integers(1, 255))
@example(place=0.0, mask=255)
def test_a_flipped_byte_is_noticed_or_does_no_harm(
    place: float, mask: int, intact: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    content = bytearray(intact)
    content[int(place * len(content))] ^= mask
    whole_or_refused(bytes(content), tmp_path_factory.mktemp("flip"))


@given(cut=st.floats(0, 1, exclude_max=True), rest=st.binary(max_size=40))
def test_a_cut_file_is_noticed(
    cut: float, rest: bytes, intact: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    whole_or_refused(intact[: int(cut * len(intact))] + rest, tmp_path_factory.mktemp("cut"))


@pytest.mark.slow
def test_every_byte(intact: bytes, tmp_path: Path) -> None:
    for place in range(len(intact)):
        for mask in (1, 128, 255):
            content = bytearray(intact)
            content[place] ^= mask
            whole_or_refused(bytes(content), tmp_path)


@given(content=st.binary(max_size=300))
def test_arbitrary_bytes_are_refused(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    for written in (content, sealed(content)):
        refused(written, tmp_path_factory)


def refused(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.mktemp("bytes") / "file"
    file.write_bytes(content)
    with pytest.raises(CheckpointError):
        read(file, 10, 0, 1)


def write_alone(folder: Path, step: int, *ranks: int, size: int = SIZE, mark: str = "") -> None:
    """Write the files of some ranks of a group."""
    for rank in ranks:
        saver = Saver(folder)
        saver.start(step, state(step, rank), rank, size, mark)
        saver.settle()
        assert saver.done == step


def test_a_saver_writes_what_was_there_when_it_was_called(tmp_path: Path) -> None:
    mine, gate = state(7, 1), Gate()
    module = torch.nn.BatchNorm1d(3)
    saver = Saver(tmp_path)
    saver.start(7, {**mine, "gate": gate, "module": module.state_dict()}, 1, SIZE)
    for tensor in (mine["weights"], mine["half"], module.running_mean):
        assert tensor is not None
        tensor.fill_(99)
    mine["nested"]["list"].append(5)
    assert saver.done == 0
    assert not file_of(tmp_path, 7, 1).exists()
    gate.opened.set()
    saver.settle()
    assert saver.done == 7
    found = read(file_of(tmp_path, 7, 1), 7, 1, SIZE)
    assert same({key: found[key] for key in mine}, state(7, 1))
    assert found["module"]["running_mean"].eq(0).all()
    assert found["module"]._metadata == module.state_dict()._metadata


def test_a_saver_writes_one_at_a_time(tmp_path: Path) -> None:
    gate, saver, done = Gate(), Saver(tmp_path), list[int]()

    def second() -> None:
        saver.start(2, state(2, 0), 0, 1)
        done.append(min(saver.done, 1))

    saver.start(1, {**state(1, 0), "gate": gate}, 0, 1)
    thread = threading.Thread(target=second)
    thread.start()
    gate.opened.set()
    thread.join(30)
    assert done == [1]
    saver.settle()
    assert saver.done == 2
    assert len(held(tmp_path)) == 2
    assert same(load_any(tmp_path), (2, [state(2, 0)]))


def test_a_stuck_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, saver = Gate(), Saver(tmp_path)
    saver.start(1, {"gate": gate}, 0, 1)
    monkeypatch.setattr(saver_module, "PATIENCE", 0.01)
    for wait in (saver.settle, lambda: saver.start(2, {}, 0, 1)):
        with pytest.raises(
            CheckpointError, match=r"rank-00000.pt: still being written after 0.01 s; check the disk"
        ):
            wait()
    gate.opened.set()
    monkeypatch.undo()
    saver.settle()
    assert newest(tmp_path) == saver.done == 1


@pytest.mark.parametrize("by", ["settle", "start"])
def test_a_write_that_fails_is_said_once_and_costs_nothing(by: str, tmp_path: Path) -> None:
    saver = Saver(tmp_path)
    saver.settle()
    saver.start(10, state(10, 0), 0, 1)
    saver.settle()
    before = held(tmp_path)
    blocked = file_of(tmp_path, 20, 0).with_suffix(".partial")
    blocked.mkdir(parents=True)
    saver.start(20, state(20, 0), 0, 1)
    with pytest.raises(CheckpointError, match=r"rank-00000.pt: cannot be written \(.*; free space") as error:
        saver.settle() if by == "settle" else saver.start(30, state(30, 0), 0, 1)
    assert "\n" not in str(error.value)
    assert (held(tmp_path), saver.done) == (before, 10)
    saver.settle()
    blocked.rmdir()
    saver.start(20, state(20, 0), 0, 1)
    saver.settle()
    assert newest(tmp_path) == saver.done == 20


def test_a_failed_write_leaves_no_folder_and_no_older_file_of_its_step_touched(tmp_path: Path) -> None:
    write_alone(tmp_path, 10, 0, size=1)
    saver = Saver(tmp_path)
    for step in (10, 20):
        saver.start(step, {"a": lambda: 0}, 0, 1)  # cannot be pickled
        with pytest.raises(Exception, match="pickle"):
            saver.settle()
    assert held(tmp_path) == ["step-00000010/rank-00000.pt"]
    assert len([*tmp_path.iterdir()]) == 1
    assert same(load_any(tmp_path), (10, [state(10, 0)]))


def left(folder: Path) -> list[int]:
    """Return the steps that have a folder."""
    return sorted(int(path.name[5:]) for path in folder.iterdir())


@pytest.mark.parametrize("shared", [True, False])
def test_pruning_leaves_the_newest_that_all_have(shared: bool, tmp_path: Path) -> None:
    folders = [tmp_path / ("0" if shared else str(rank)) for rank in range(2)]
    savers = [Saver(folder, keep=2) for folder in folders]
    savers[0].prune(5)  # before the first
    for step in range(1, 6):
        for rank, saver in enumerate(savers):
            if (step, rank) != (5, 1):
                saver.start(step, state(step, rank), rank, 2)
                saver.settle()
    if shared:  # it sees for itself who has what
        savers[0].prune(0)
        assert left(folders[0]) == [3, 4, 5]
        assert newest(folders[0]) == 4
        return
    for common, stay in ((0, [1, 2, 3, 4, 5]), (1, [1, 2, 3, 4, 5]), (3, [2, 3, 4, 5]), (4, [3, 4, 5])):
        savers[0].prune(common)
        assert left(folders[0]) == stay
        assert left(folders[1]) == [1, 2, 3, 4]


def test_deaths_in_a_row_leave_the_last_whole_one(tmp_path: Path) -> None:
    savers = [Saver(tmp_path) for _ in range(2)]
    write_alone(tmp_path, 100, 0, 1, 2)
    write_alone(tmp_path, 200, 0, 1, 2)
    for step in (300, 400):  # rank 2 dies before its file is there, and so does its successor
        for rank, saver in enumerate(savers):
            saver.start(step, state(step, rank), rank, 3, "of another epoch")
            saver.settle()
    for saver in savers:
        saver.prune(400)
    assert newest(tmp_path) == 200
    write_alone(tmp_path, 500, 0, 1, size=2)
    for rank, saver in enumerate(savers):
        saver.start(600, state(600, rank), rank, 2)
        saver.settle()
    savers[0].prune(600)
    assert left(tmp_path) == [500, 600]


def test_pruning_takes_what_others_left_along(tmp_path: Path) -> None:
    write_alone(tmp_path, 1, 0, 1, 2, 3, size=4)
    file_of(tmp_path, 1, 4).with_suffix(".partial").write_bytes(b"half")
    (tmp_path / "step-00000002").mkdir()
    write_alone(tmp_path, 3, 0, size=2)
    saver = Saver(tmp_path, keep=1)
    saver.start(3, state(3, 1), 1, 2)
    saver.settle()
    saver.prune(3)
    assert held(tmp_path) == ["step-00000003/rank-00000.pt", "step-00000003/rank-00001.pt"]
    assert left(tmp_path) == [3]


def test_pruning_tells_groups_apart_and_counts_no_step_to_come(tmp_path: Path) -> None:
    write_alone(tmp_path, 10, 0, 1, size=2)
    write_alone(tmp_path, 20, 0, size=2, mark="first")
    write_alone(tmp_path, 20, 1, size=2, mark="second")
    write_alone(tmp_path, 30, 0, size=2)
    write_alone(tmp_path, 30, 1, size=3)
    for step in (40, 50):  # damaged, so that the run went back to before them
        write_alone(tmp_path, step, 0, 1, size=2)
    saver = Saver(tmp_path, keep=1)
    saver.start(35, state(35, 0), 0, 2)
    saver.settle()
    saver.prune(35)
    assert left(tmp_path) == [10, 35, 40, 50]
    write_alone(tmp_path, 35, 1, size=2)
    saver.prune(35)
    assert left(tmp_path) == [35, 40, 50]


class History:
    """Workers that write into one folder, die and are replaced, as in an elastic run; and what became whole.

    Each write is by the members of that moment: some have died before their file is there, some cannot write.
    Those who are left say what they have written, a new one nothing, and prune by the oldest of what was said.
    """

    def __init__(self, folder: Path, workers: int) -> None:
        self.folder, self.step, self.whole = folder, 0, 0
        self.savers = [Saver(folder) for _ in range(workers)]

    def write(self, die: set[int], fail: set[int], replaced: bool) -> None:
        self.step += 10
        size, wrote = len(self.savers), 0
        for rank, saver in enumerate(self.savers):
            if rank in die:
                continue
            content: dict[str, Any] = {"x": torch.tensor(self.step)}
            saver.start(self.step, {"a": lambda: 0} if rank in fail else content, rank, size, str(self.step))
            try:
                saver.settle()
                wrote += 1
            except (CheckpointError, AttributeError, pickle.PicklingError):
                assert rank in fail
        self.whole = self.step if wrote == size else self.whole
        survivors = [saver for rank, saver in enumerate(self.savers) if rank not in die]
        missing = size - len(survivors) if replaced else 0
        self.savers = [*survivors, *(Saver(self.folder) for _ in range(missing))] or [Saver(self.folder)]

    def prune(self, who: set[int]) -> None:
        common = min(saver.done for saver in self.savers)
        for rank, saver in enumerate(self.savers):
            if rank in who:
                saver.prune(common)

    def check(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if self.whole:
                assert load_any(self.folder)[0] == self.whole


ranks = st.sets(st.integers(0, 2), max_size=2)
writes = st.tuples(ranks, ranks, st.booleans(), st.sets(st.integers(0, 2)))


@few
@given(history=st.lists(writes, min_size=3, max_size=25))
@example(history=[(set(), set(), True, {0, 1, 2})] * 2 + [({2}, set(), True, {0, 1})] * 20)
@example(history=[(set(), set(), True, {0, 1, 2})] * 2 + [(set(), {1}, True, {0, 1, 2})] * 20)
def test_after_any_history_the_newest_whole_one_is_there_and_few_others(
    history: list[tuple[set[int], set[int], bool, set[int]]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    workers = History(tmp_path_factory.mktemp("history"), 3)
    since = 0  # writes without a look of anybody who has written
    for die, fail, replaced, who in history:
        workers.write(die, fail, replaced)
        looks = any(rank in who and saver.done == workers.step for rank, saver in enumerate(workers.savers))
        since = 0 if looks else since + 1
        workers.prune(who)
        workers.check()
        assert len(left(workers.folder)) <= 2 + 8 + 2 * 2 + since


def test_the_newest_whole_one_of_any_size(tmp_path: Path) -> None:
    write_alone(tmp_path, 10, 0, 1, 2, 3, size=4)
    write_alone(tmp_path, 20, 0, 1, 2)
    assert same(load_any(tmp_path), (20, [state(20, rank) for rank in range(3)]))
    write_alone(tmp_path, 30, 0, 1, 3, size=4)
    missing = file_of(tmp_path, 30, 2)
    with pytest.warns(UserWarning, match=rf"{missing}: cannot be read \(.*No such file.*; going back to step 20"):
        assert load_any(tmp_path)[0] == 20
    write_alone(tmp_path, 30, 0, 1, size=2)  # rank 3's is of the attempt before
    assert same(load_any(tmp_path), (30, [state(30, rank) for rank in range(2)]))


def test_a_set_with_files_of_another_group_is_not_whole(tmp_path: Path) -> None:
    write_alone(tmp_path, 10, 0, 1, 2, mark="first")
    write_alone(tmp_path, 20, 0, 1, 2, mark="first")
    write_alone(tmp_path, 20, 0, 2, mark="second")
    with pytest.warns(UserWarning, match=r"rank-00001.pt: mark: expected 'second', found 'first'; going back"):
        assert load_any(tmp_path)[0] == 10
    with pytest.warns(UserWarning, match="step 20 is not there on all ranks; going back to step 10"):
        assert at_step(tmp_path, 10)
    write_alone(tmp_path, 20, 1, mark="second")
    assert load_any(tmp_path)[0] == newest(tmp_path) == 20
    assert at_step(tmp_path, 20)
    write_alone(tmp_path, 20, 2, size=4, mark="second")
    with pytest.warns(UserWarning, match=r"rank-00002.pt: size: expected 3, found 4; going back to step 10"):
        assert load_any(tmp_path)[0] == 10


def test_none_that_is_whole_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(CheckpointError, match=r"expected a checkpoint \(step-N/rank-N.pt\), found none"):
            newest(folder)
    write_alone(tmp_path, 10, 0, 1)
    write_alone(tmp_path, 20, 1, 2)
    for call in (newest, load_any):
        with pytest.raises(CheckpointError, match=r"step-00000020/rank-00000.pt: cannot be read"):
            call(tmp_path)
