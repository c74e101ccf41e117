"""`swarmstep watch` shows from its files what the run itself shows, and `report` makes a page of a single run."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import shutil
import sys
from pathlib import Path

import pytest

from swarmstep.cli import main
from swarmstep.compare import results
from swarmstep.compare.single_run import load_run, method_of
from swarmstep.errors import DataError, Interrupted, UsageError
from swarmstep.train import watching
from swarmstep.train.config import Config
from swarmstep.train.progress import Progress, sparkline
from swarmstep.train.run_folder import locked, read_config
from swarmstep.train.watching import after, newest, watch

RUN = ("train", "digits", "--steps", "48", "--eval-every", "16", "--workers", "2", "--every", "8")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has ended."""
    folder = tmp_path_factory.mktemp("runs") / "done"
    assert main([*RUN, "--out", str(folder)]) == 0
    return folder


def test_a_run_that_has_ended(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = json.loads((done / "summary.json").read_text())
    assert main(["watch", str(done), "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == summary
    assert f"step 48/48: loss {' '.join(f'{loss:.3f}' for loss in last(done, 'look')['losses'])}" in err
    assert f"test_loss {summary['test_loss']:.4f}, test_accuracy" in err
    assert f"{summary['rounds']} rounds, {summary['bytes_sent_per_worker'] / 1000:.1f} kB sent, 0 s left" in err
    assert main(["watch", str(done.parent)]) == 0  # the newest below runs/
    assert f"test loss {summary['test_loss']:.4f}" in capsys.readouterr().out


def last(folder: Path, kind: str) -> dict[str, list[float]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == kind][-1]


def test_one_that_was_stopped(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert main([*RUN, "--out", "run", "--stop-at", "20"]) == Interrupted.exit_code
    capsys.readouterr()
    monkeypatch.setattr(watching, "QUIET", 0.0)
    assert main(["watch", "run"]) == 0
    assert capsys.readouterr().out == "nobody trains in run; go on with: swarmstep train --resume run\n"
    assert main(["watch", "run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) is None


def test_rows_are_followed_while_they_are_written_and_rewound(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file grows in pieces that end within a line, is then replaced by a shorter one, and grows again."""
    shown: list[Progress] = []
    view = type("View", (), {"show": lambda self, progress: shown.append(progress), "close": lambda self: None})
    monkeypatch.setattr(watching, "choose_view", lambda title: view())
    monkeypatch.setattr(watching, "QUIET", 0.0)
    shutil.copytree(done, "run")
    run, content = Path("run"), (done / "metrics.jsonl").read_bytes()
    (run / "summary.json").unlink()
    (run / "metrics.jsonl").unlink()
    third = len(content) // 3
    pieces = iter([content[:third], content[: 2 * third], content[:third], content])

    def wait(seconds: float) -> None:
        (run / "new").write_bytes(next(pieces))
        (run / "new").replace(run / "metrics.jsonl")
        if (run / "metrics.jsonl").stat().st_size == len(content):
            shutil.copy(done / "summary.json", run)

    with contextlib.closing(locked(run / "lock")):  # somebody trains
        assert watch(run, wait=wait) == json.loads((done / "summary.json").read_text())
    steps = [progress.step for progress in shown]
    assert steps[-1] == 48
    assert steps != sorted(steps), "back at the rewound step in between"
    assert (shown[-1].rounds, len(shown[-1].losses)) == (6, 2)
    assert shown[-1].bytes_sent == json.loads((done / "summary.json").read_text())["bytes_sent_per_worker"]


def test_what_was_lost_of_a_loss_is_not_a_number(done: Path) -> None:
    config, begun = read_config(done, done=True), Progress(0, 48, [], 0, 0, {})
    shown = after(begun, {"kind": "look", "step": 8, "losses": [1.0, None]}, config)
    assert math.isnan(shown.losses[1])
    assert after(shown, {"kind": "trace", "step": 48, "folded": []}, config) == shown


def test_nothing_to_watch(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataError, match="expected a run's folder, or one with runs in it; found none"):
        newest(place)
    assert main(["watch", "absent"]) == DataError.exit_code
    assert "absent: expected a run's folder" in capsys.readouterr().err


def test_sparklines() -> None:
    assert sparkline([]) == sparkline([math.nan]) == ""
    assert sparkline([3.0, 2.0, math.nan, 1.0]) == "\u2588\u2585 \u2581"
    assert len(sparkline([*map(float, range(1000))], 50)) == 50
    assert sparkline([2.0, 2.0]) == "\u2581\u2581"


def test_a_page_and_a_table_of_a_run(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = json.loads((done / "summary.json").read_text())
    (cell,) = load_run(done).cells
    assert (cell.method, cell.points[-1].test_loss) == ("swarm", summary["test_loss"])
    assert cell == results.from_json(json.loads(json.dumps(results.to_json(cell))), "there and back")
    assert main([*RUN, "--seed", "1", "--set", "inertia=0.5", "--codec", "int8", "--out", "other"]) == 0
    capsys.readouterr()
    assert main(["report", str(done), "other", "--format", "md"]) == 0
    out = capsys.readouterr().out
    assert f"| swarm | 8 | {summary['test_accuracy']:.4f} |" in out
    assert "| swarm+inertia=0.5+codec=int8 | 8 |" in out
    assert main(["report", str(done), "-o", "run.html"]) == 0
    assert "<title>digits: swarm</title>" in Path("run.html").read_text()


def test_runs_of_which_there_is_no_report(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*RUN, "--out", "run", "--stop-at", "20"]) == Interrupted.exit_code
    assert main(["report", "run"]) == DataError.exit_code
    assert "run: no report of this run: it is not done: `swarmstep watch` shows" in capsys.readouterr().err
    shutil.copytree(done, "damaged")
    Path("damaged/metrics.jsonl").write_text('{"kind": "evaluation"}\n')
    assert main(["report", "damaged"]) == DataError.exit_code
    assert "damaged: no report of this run: a file is damaged" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["png", "svg"])
def test_plots_of_a_run(form: str, done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    assert main(["report", str(done), "--format", form, "--json"]) == 0
    names = [
        f"1-digits-mlp-2-workers-{what}-{axis}" for what in ("accuracy", "loss") for axis in ("step", "bytes")
    ]
    said = json.loads(capsys.readouterr().out)
    assert said == {"format": form, "files": [f"plots/{name}.{form}" for name in names]}
    start = b"\x89PNG" if form == "png" else b"<?xml"
    assert all(Path(file).read_bytes().startswith(start) for file in said["files"])


def test_plots_need_a_folder(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(done), "-o", "plot.png"]) == UsageError.exit_code
    assert "--output plot.png: plots are several files; give --format png and a folder" in capsys.readouterr().err
    assert not Path("plot.png").exists()


def test_plots_without_matplotlib(
    done: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["report", str(done), "--format", "png"]) == UsageError.exit_code
    assert "plots need matplotlib, which cannot be imported" in capsys.readouterr().err


def test_natural_sampling_is_no_part_of_a_method() -> None:
    config = Config("digits", strategy="local-sgd", sampling="natural", every=8, when="every:8")
    assert method_of(config) == "local-sgd"
    assert method_of(dataclasses.replace(config, sampling="balanced")) == "local-sgd+sampling=balanced"
