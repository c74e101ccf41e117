"""What sinks get of a run is what its metrics.jsonl says, each number once, also where the run was resumed."""

from __future__ import annotations

import importlib.util
import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from swarmstep import tracking
from swarmstep.cli import main
from swarmstep.errors import Interrupted, UsageError
from swarmstep.tracking import named, scalars

RUN = ("train", "digits", "--steps", "48", "--eval-every", "16", "--workers", "2", "--checkpoint-every", "16")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def expected(folder: Path) -> dict[str, dict[int, float]]:
    """Return the last value of each name and step, from the rows that the run wrote."""
    found: dict[str, dict[int, float]] = {}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        step, values = scalars(json.loads(line))
        for name, value in values.items():
            found.setdefault(name, {})[step] = value
    return found


def agree(found: Mapping[str, Mapping[int, float]], folder: Path) -> None:
    wanted = expected(folder)
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        assert found[name] == pytest.approx(values, rel=1e-6), name


def interrupted_and_resumed(sink: str) -> Path:
    """Run up to step 24, of which the rows after the checkpoint at 24 are there, then the rest."""
    assert main([*RUN, "--out", "run", "--stop-at", "24", "--track", sink]) == Interrupted.exit_code
    assert main(["train", "--resume", "run", "--track", sink]) == 0
    return Path("run")


def test_names_of_a_row() -> None:
    look = {"kind": "look", "step": 3, "losses": [1.0, None, 2.0], "by_worker": [{"rank": 1, "steps": 3}]}
    assert scalars(look) == (3, {"loss/mean": 1.5, "loss/0": 1.0, "loss/2": 2.0, "work/steps/1": 3.0})
    evaluation = {"kind": "evaluation", "step": 8, "seconds": 2.0, "bytes_sent": 9, "test_loss": 0.5}
    evaluation |= {"test_accuracy": None, "validation_loss": math.inf, "flips": 3}
    wanted = {"cost/seconds": 2.0, "cost/bytes_sent": 9.0, "test/loss": 0.5, "model/flips": 3.0}
    assert scalars(evaluation) == (8, wanted)
    landed = {
        "kind": "round",
        "step": 8,
        "landed": 10,
        "number": 1,
        "distrusted": [{}],
        "losses": [1.0],
        "x": True,
    }
    assert scalars(landed) == (10, {"round/number": 1.0, "round/distrusted": 1.0})
    assert scalars({"kind": "trace", "step": 5, "folded": []}) == (5, {})


def test_unknown_and_missing_ones_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError, match=r"--track: expected names among tensorboard, wandb, mlflow, found 'x'"):
        named("tensorboard,x" if importlib.util.find_spec("tensorboard") else "x")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main([*RUN, "--track", "wandb"]) == UsageError.exit_code
    assert '--track wandb: not installed here: pip install "swarmstep[wandb]"' in capsys.readouterr().err
    assert not Path("runs").exists()
    assert main([*RUN, "--track", "wandb", "--no-files"]) == UsageError.exit_code


class Recording:
    """A sink that fails when its folder is called `fails`."""

    calls: list[Any]

    def __init__(self, folder: Path, config: Mapping[str, Any], step: int) -> None:
        self._folder = folder
        Recording.calls = [("open", config["workload"], step)]

    def write(self, step: int, values: Mapping[str, float]) -> None:
        if self._folder.name == "fails" and step > 16:
            raise OSError("no room")
        Recording.calls.append((step, values))

    def close(self) -> None:
        Recording.calls.append("close")


@pytest.fixture
def recording(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tracking.SINKS, "json", Recording)  # a module that is always there


@pytest.mark.usefixtures("recording")
def test_a_sink_gets_all_rows_and_is_told_where_a_resumed_run_goes_on() -> None:
    assert main([*RUN, "--out", "run", "--stop-at", "24", "--track", "json"]) == Interrupted.exit_code
    first, Recording.calls = Recording.calls, []
    assert first[0] == ("open", "digits", 0)
    assert first[-1] == "close"
    assert main(["train", "--resume", "run", "--track", "json"]) == 0
    assert Recording.calls[0] == ("open", "digits", 24)
    found: dict[str, dict[int, float]] = {}
    for step, values in [*first[1:-1], *Recording.calls[1:-1]]:
        for name, value in values.items():
            found.setdefault(name, {})[step] = value
    agree(found, Path("run"))


@pytest.mark.usefixtures("recording")
def test_one_that_fails_gets_no_more_and_the_run_ends_well(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*RUN, "--out", "fails", "--track", "json"]) == 0
    assert capsys.readouterr().err.count("warning: --track json failed at step 24 and gets no more: no room") == 1
    assert max(step for step, _ in Recording.calls[1:]) == 16
    assert json.loads(Path("fails/summary.json").read_text())["steps_taken"] == 48


def test_tensorboard() -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = interrupted_and_resumed("tensorboard")
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    agree({name: {e.step: e.value for e in events.Scalars(name)} for name in events.Tags()["scalars"]}, run)


def test_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run = interrupted_and_resumed("mlflow")
    client = mlflow.MlflowClient(tracking_uri=(run / "mlruns").absolute().as_uri())
    (one,) = client.search_runs([client.get_experiment_by_name("swarmstep").experiment_id])  # both parts
    assert (one.info.status, one.data.params["workload"]) == ("FINISHED", "digits")
    histories = {name: client.get_metric_history(one.info.run_id, name) for name in one.data.metrics}
    agree({name: {m.step: m.value for m in metrics} for name, metrics in histories.items()}, run)


def records(file: Path) -> list[bytes]:
    """Return the records of a .wandb file: a LevelDB log in blocks of 32 kB, after a header of 7 bytes."""
    content, found, part, place = file.read_bytes(), [], b"", 7
    while place < len(content):
        if (rest := 32768 - place % 32768) < 7:
            place += rest
            continue
        length, kind = struct.unpack("<HB", content[place + 4 : place + 7])
        part += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            found.append(part)
            part = b""
    return found


def test_wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.delenv("WANDB_MODE", raising=False)
    run = interrupted_and_resumed("wandb")
    found: dict[str, dict[int, float]] = {}
    files = sorted((run / "wandb").glob("offline-run-*/*.wandb"))
    assert len({file.name for file in files}) == 1, "one id"
    for record in (Record.FromString(data) for file in files for data in records(file)):
        if record.HasField("history"):
            items = record.history.item
            values = {i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in items}
            for name in values.keys() - {"_step", "_runtime", "_timestamp"}:
                found.setdefault(name, {})[values["_step"]] = values[name]
    agree(found, run)
