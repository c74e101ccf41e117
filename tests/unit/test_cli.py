"""The command line: one clear line and the documented exit code for whatever a user may type."""

from __future__ import annotations

import contextlib
import json
import resource
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runs import ROOT, rows, weights
from swarmstep import STRATEGIES, __version__
from swarmstep.cli import doctor, main
from swarmstep.cli.exit_codes import MEANINGS
from swarmstep.errors import SwarmstepError
from swarmstep.train.config import ASYNCHRONOUS
from swarmstep.train.job import Job
from swarmstep.train.run_folder import RunFolder
from swarmstep.train.run_logger import RunLogger

Refuse = Callable[..., str]

FILE = """
import torch
from torch import nn
from swarmstep.workloads import Defaults, Examples, Workload
x = torch.randn(400, 8, generator=torch.Generator().manual_seed(0))
y = (x.sum(1) > 0).long()

def make(model=lambda: nn.Linear(8, 2), **changes):
    settings = dict(name="halves", train=Examples(x[:300], y[:300]), test=Examples(x[300:], y[300:]),
                    models={"linear": model}, classes=2, defaults=Defaults(lr=0.1, batch=8, every=4, steps=12))
    return Workload(**{**settings, **changes})

class Raises(nn.Linear):
    def forward(self, x):
        raise ValueError("no luck\\nat all")  # line 15

class Mismatch(nn.Linear):
    def forward(self, x):
        return super().forward(x[:, :3])  # line 19

class Leaves(nn.Linear):
    def forward(self, x):
        raise SystemExit(7)  # line 23

good = make()
raises, mismatch, leaves = (make(lambda kind=kind: kind(8, 2)) for kind in (Raises, Mismatch, Leaves))
no_module = make(lambda: 5)
broken_model = make(lambda: 1 / 0)  # line 28
frozen = make(lambda: nn.Linear(8, 2).requires_grad_(False))
vector_loss = make(loss=lambda outputs, targets: outputs.sum(1))
constant_loss = make(loss=lambda outputs, targets: torch.tensor(1.0))
float_loss = make(loss=lambda outputs, targets: 1.0)
vector_correct = make(correct=lambda outputs, targets: outputs)
tiny = make(train=Examples(x[:2], y[:2]))
number = 5
no_model = lambda: make(models={})
needs_more = lambda a, b: good
no_accuracy = make(classes=None, correct=None)
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run each test in a folder of its own, without network or data."""
    monkeypatch.chdir(tmp_path)
    for name in ("SWARMSTEP_DATA", "RANK", "WORLD_SIZE", "SWARMSTEP_TRACEBACK"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    return tmp_path


@pytest.fixture
def refuse(capsys: pytest.CaptureFixture[str]) -> Refuse:
    """Return a function that expects an exit code and one line, and returns the line."""

    def refuse(code: int, *arguments: str) -> str:
        capsys.readouterr()
        assert main(arguments) == code
        out, err = capsys.readouterr()
        line = err.splitlines()[-1]
        assert out == ""
        assert [line] == [said for said in err.splitlines() if not said.startswith(("step ", "downloading "))]
        assert line.startswith("swarmstep: ")
        assert "Traceback" not in line
        return line

    return refuse


NAMES = ", ".join(sorted({*STRATEGIES, "ddp", *ASYNCHRONOUS}))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("", "missing command; swarmstep --help shows what is valid"),
        ("frob", "no such command 'frob'"),
        ("trian", "no such command 'trian'. Did you mean 'train'?; swarmstep --help shows what is valid"),
        ("train digits --stpes 5", "no such option: --stpes (Possible options: "),
        (
            "train digits more",
            "got unexpected extra argument(s) (more); swarmstep train --help shows what is valid",
        ),
        ("train digits --out", "option '--out' requires an argument"),
        ("chaos", "missing argument 'WORKLOAD'; swarmstep chaos --help shows what is valid"),
        ("compare digits", "missing option '--out'"),
        ("run", "missing argument 'PROGRAM.py'"),
        ("strategies nope", f"unknown strategy 'nope'; expected one of {NAMES}"),
        (
            "train",
            "expected a WORKLOAD (digits, mnist, cifar10, imbalanced, text, spiking, path/to/file.py:workload)",
        ),
        (
            "train nope",
            "unknown workload 'nope'; expected one of digits, mnist, cifar10, imbalanced, text, spiking, or",
        ),
        ("train digits --strategy nope", f"unknown strategy 'nope'; expected one of {NAMES}"),
        ("train digits --model nope", "unknown model 'nope' of digits; expected mlp"),
        (
            "train digits --strategy pso-ps --set foo=1",
            "unknown setting 'foo' of PSOPS; expected one of inertia",
        ),
        ("train digits --strategy pso-ps --set inertia=x", "inertia: expected float, found 'x'"),
        ("train digits --strategy pso-ps --set inertia=2", "inertia: expected 0 to 1, found 2.0"),
        ("train digits --strategy pso-ps --set inertia=nan", "inertia: expected 0 to 1, found nan"),
        ("train digits --set inertia", "--set: expected NAME=VALUE, found 'inertia'"),
        ("train digits --set =5", "--set: expected NAME=VALUE, found '=5'"),
        ("train digits --strategy pso-ps --set best=x", "best: expected one of round, historical"),
        (
            "train digits --strategy pso-ps --set constriction=maybe",
            "constriction: expected true or false, found 'maybe'",
        ),
        (
            "train digits --strategy synchronous --set a=1",
            "unknown setting 'a' of Synchronous; expected one of none",
        ),
        ("train digits --when often", "unknown trigger 'often'; expected every:N"),
        ("train digits --when every:0", "expected n >= 1, found 0"),
        ("train digits --when warmup:-1,every:2", "unknown trigger 'warmup:-1,every:2'; expected every:N"),
        ("train digits --when warmup:1,warmup:1,never", "unknown trigger 'warmup:1,never'; expected every:N"),
        ("train digits --when every:2 --every 2", "--every and --when: give one of them"),
        ("train digits --shards nope", "unknown shards 'nope'; expected iid, contiguous, dealt, classes:K, dir"),
        ("train digits --shards classes:11", "classes of a worker must be 1 to 10, found 11"),
        ("train digits --shards bad-labels:9", "bad-labels must be 1 to 4, the number of workers, found 9"),
        ("train digits --fault bang:1", "unknown fault 'bang:1'; expected noise:K:SIGMA, scale:K:FACTOR, sign"),
        ("train digits --fault sign:5", "K must be 1 to 4, the number of workers, found 5"),
        ("train digits --fault nan:1:401", "STEP must be 1 to 400, the steps of the run"),
        (
            "train digits --backend mpi",
            "--backend: expected one of sim, gloo, nccl, found 'mpi'; swarmstep train --help",
        ),
        (
            "train digits --optimizer adam",
            "--optimizer: expected one of sgd, momentum, adamw, muon, mt-dao, found 'adam'",
        ),
        ("train digits --workers 0", "workers must be 1 to 1223, the number of training examples, found 0"),
        ("train digits --workers 1224", "workers must be 1 to 1223, the number of training examples, found 1224"),
        ("train digits --workers 99999 --backend gloo", "workers must be 1 to 1223"),
        ("train digits --workers 2.5", "--workers: expected a whole number, found '2.5'"),
        ("train digits --lr fast", "--lr: expected a number, found 'fast'"),
        ("train digits --steps 0", "steps must be at least 1, found 0"),
        ("train digits --steps -3", "steps must be at least 1, found -3"),
        ("train digits --batch 0", "batch must be at least 1, found 0"),
        ("train digits --batch 1000000000000", "batch must be 1 to 1223, the number of training examples"),
        ("train digits --lr 0", "lr must be positive and finite, found 0.0"),
        ("train digits --lr nan", "lr must be positive and finite, found nan"),
        ("train digits --lr -0.1", "lr must be positive and finite, found -0.1"),
        ("train digits --weight-decay inf", "weight_decay must be at least 0 and finite"),
        ("train digits --every 0", "every must be at least 1, found 0"),
        ("train digits --eval-every 0", "eval_every must be at least 1, found 0"),
        ("train digits --checkpoint-every 0", "checkpoint_every must be at least 1, found 0"),
        ("train digits --seed -1", "seed must be at least 0, found -1"),
        ("train digits --delay -1", "delay: expected a number of steps, 0 or more, found -1"),
        ("train digits --mix 2", "mix: expected 0 to 1, found 2.0"),
        ("train digits --codec zip", "expected one of bfloat16, int8, int4, topk:FRACTION"),
        ("train digits --codec topk:0", "topk"),
        ("train digits --strategy gossip-ring --codec int4", "use bfloat16 or int8"),
        ("train digits --fragments 0", "fragments: expected 1 to 3, the number of modules"),
        ("train digits --fragments 2 --when never", "expected when=Every(n) with n at least 2"),
        ("train digits --fragments 2 --strategy fedpso", "measures whole models on a probe; use fragments=1"),
        ("train digits --strategy synchronous --delay 2", "synchronous takes none of --delay, --eager, --mix"),
        ("train digits --strategy osp --delay 2", "osp takes none of --delay, --eager, --mix"),
        ("train digits --strategy osp --optimizer adamw", "found adamw and --clip 0; --set local=false takes any"),
        ("train digits --strategy osp --clip 1", "found momentum and --clip 1; --set local=false takes any"),
        (
            "train digits --strategy osp --elastic local --backend gloo",
            "osp synchronizes gradients; --elastic takes",
        ),
        ("train digits --stop-at 0", "--stop-at: expected a step from 1 to 400, found 0"),
        ("train digits --stop-at 401", "--stop-at: expected a step from 1 to 400, found 401"),
        ("train digits --silence 0.1", "--silence: expected 2 to 1e6 seconds, found 0.1"),
        ("train digits --patience inf", "--patience: expected 1 to 1e6 seconds, found inf"),
        ("train digits --patience nan", "--patience: expected 1 to 1e6 seconds, found nan"),
        ("train digits --out a --resume b", "--resume and --out: a resumed run stays in its folder"),
        ("train digits --out a --no-files", "--no-files: goes with neither --out, --resume nor --track"),
        ("train no.py:x", "workload file no.py does not exist (looked in /"),
        ("cite nope", "no paper for 'nope'; expected one of "),
    ],
)
def test_wrong_options(arguments: str, said: str, refuse: Refuse, place: Path) -> None:
    line = refuse(2, *arguments.split())
    assert said in line
    assert {path.name for path in place.rglob("*") if path.is_file()} <= {"lock"}


MASTER = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"RANK": "a", "WORLD_SIZE": "2", **MASTER}, "expected RANK from 0 to WORLD_SIZE - 1, found RANK='a'"),
        ({"RANK": "2", "WORLD_SIZE": "2", **MASTER}, "found RANK='2' and WORLD_SIZE='2'"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "environment: RANK, WORLD_SIZE without MASTER_ADDR, MASTER_PORT: exp"),
        (
            {"RANK": "0"},
            "environment: RANK without WORLD_SIZE, MASTER_ADDR, MASTER_PORT: expected all four",
        ),
        (
            {"WORLD_SIZE": "2", **MASTER},
            "environment: WORLD_SIZE, MASTER_ADDR, MASTER_PORT without RANK: exp",
        ),
    ],
)
def test_an_environment_that_makes_no_group(
    environment: dict[str, str], said: str, refuse: Refuse, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert said in refuse(2, "train", "digits")


@pytest.mark.parametrize("workers", ["3", None])
def test_options_that_do_not_fit_the_processes(
    workers: str | None, refuse: Refuse, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", **MASTER}.items():
        monkeypatch.setenv(name, value)
    if workers:
        line = refuse(2, "train", "digits", "--workers", workers)
        assert "--workers 3: expected 2, the processes that were started" in line
    else:
        assert "--backend sim: expected gloo or nccl" in refuse(2, "train", "digits", "--backend", "sim")


def test_data_that_are_missing_or_damaged(refuse: Refuse, place: Path) -> None:
    missing = refuse(3, "train", "mnist", "--data", "nowhere")
    assert f"missing in {place}/nowhere/MNIST/raw: train-images-idx3-ubyte.gz, train-labels" in missing
    assert "name the data folder with --data or SWARMSTEP_DATA" in missing
    assert "nowhere/cifar-10-batches-bin: data_batch_1.bin" in refuse(3, "train", "cifar10", "--data", "nowhere")
    raw = place / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (raw / f"{name}-ubyte").write_bytes(b"\0\0\x08\x05rubbish")
    assert "magic number" in refuse(3, "train", "mnist", "--data", str(place))


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        ("raises", 1, "ValueError: no luck ({file}, line 15; SWARMSTEP_TRACEBACK=1 shows more)"),
        ("mismatch", 1, "shapes cannot be multiplied (15x3 and 8x2) ({file}, line 19;"),
        ("leaves", 1, "SystemExit: 7 ({file}, line 23;"),
        ("broken_model", 1, "ZeroDivisionError: division by zero ({file}, line 28;"),
        ("no_module", 2, "expected a function that returns a torch.nn.Module, found that it returns int"),
        ("frozen", 2, "no trainable parameter"),
        ("vector_loss", 2, "loss must return a tensor of one number, found shape (8,)"),
        ("constant_loss", 2, "the loss does not depend on the model's parameters"),
        ("float_loss", 2, "loss must return a tensor of one number, found float"),
        ("vector_correct", 2, "correct must return a tensor of one number, found shape (15, 2)"),
        ("tiny", 2, "needs at least 3 examples"),
        ("number", 2, "must be a Workload or a function returning one, found int"),
        ("no_model", 2, "has no model; give models={{name: function}}"),
        ("needs_more", 2, "needs_more"),
        ("absent", 2, "has no attribute 'absent'; found "),
        ("no_accuracy --shards classes:1", 2, "need a workload with classes; expected iid, contiguous or seldp"),
    ],
)
def test_files_of_ones_own_that_are_wrong(name: str, code: int, said: str, refuse: Refuse, place: Path) -> None:
    file = place / "mine.py"
    file.write_text(FILE.replace("needs_more = lambda a, b: good", "def needs_more(a, b): ..."))
    line = refuse(code, "train", *f"mine.py:{name}".split(), "--workers", "2")
    assert said.format(file=file) in line


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"x = (", "mine.py, line 1: SyntaxError"),
        (b"\n\nimport nothing_of_this_name", "mine.py, line 3: ModuleNotFoundError"),
        (b"raise SystemExit(3)", "mine.py, line 1: SystemExit: 3"),
        (b"\xff\xfe\0", "mine.py"),
    ],
)
def test_files_of_ones_own_that_cannot_be_read(content: bytes, said: str, refuse: Refuse, place: Path) -> None:
    (place / "mine.py").write_bytes(content)
    assert said in refuse(2, "train", "mine.py:x")


def test_folders_that_cannot_be_used(refuse: Refuse, place: Path) -> None:
    (place / "file").touch()
    (place / "full").mkdir()
    (place / "full" / "thesis.tex").touch()
    train = ("train", "digits", "--steps", "8", "--workers", "2")
    assert "file cannot be written: File exists; give another --out" in refuse(4, *train, "--out", "file")
    assert "full is in use: it holds thesis.tex; give another --out" in refuse(4, *train, "--out", "full")
    assert "/proc/x cannot be written" in refuse(4, *train, "--out", "/proc/x")
    assert "nothing holds no run to resume" in refuse(4, "train", "--resume", "nothing")
    assert "full holds no run to resume" in refuse(4, "train", "--resume", "full")
    assert "file holds no run to resume" in refuse(4, "train", "--resume", "file")


def test_resuming(refuse: Refuse, place: Path) -> None:
    train = ("train", "digits", "--steps", "20", "--workers", "2", "--seed", "7", "--lr", "0.05")
    assert main([*train, "--out", "whole"]) == 0
    line = refuse(130, *train, "--stop-at", "11", "--out", "my run")
    assert line.endswith("stopped at step 11 of 20, on all ranks; go on with: swarmstep train --resume 'my run'")
    assert "--seed 3: the run to resume has 7" in refuse(2, "train", "--resume", "my run", "--seed", "3")
    assert "--lr 0.5: the run to resume has 0.05" in refuse(2, "train", "--resume", "my run", "--lr", "0.5")
    assert "--set {'inertia': '0'}: the run" in refuse(2, "train", "--resume", "my run", "--set", "inertia=0")
    assert "from 12 to 20, found 11" in refuse(2, "train", "--resume", "my run", "--stop-at", "11")
    assert "is in use: it holds checkpoints" in refuse(4, *train, "--out", "my run")
    assert main(["train", "digits", "--resume", "my run", "--seed", "7", "--json"]) == 0
    assert weights(place / "whole") == weights(place / "my run")
    assert rows(place / "whole") == rows(place / "my run")
    assert "the run is done" in refuse(4, "train", "--resume", "my run")


def test_checkpoints_that_are_damaged(refuse: Refuse, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = ("train", "digits", "--steps", "20", "--workers", "2")
    assert main([*train, "--out", "whole"]) == 0
    refuse(130, *train, "--checkpoint-every", "5", "--stop-at", "10", "--out", "run")
    for step in (10, 5):
        file = place / "run" / "checkpoints" / f"step-{step:08d}" / "rank-00001.pt"
        file.write_bytes(file.read_bytes()[:-100])
        if step == 10:
            shutil.copytree("run", "spare")
    line = refuse(4, "train", "--resume", "run")
    assert "step-00000010/rank-00001.pt: half-written, damaged or foreign" in line
    capsys.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("always")  # pytest makes errors of them
        assert main(["train", "--resume", "spare"]) == 0
    (warning,) = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert warning.startswith("swarmstep: warning: spare/checkpoints/step-00000010/rank-00001.pt: half-written")
    assert warning.endswith("; going back to step 5")
    assert weights(place / "spare") == weights(place / "whole")
    config = place / "run" / "config.json"
    config.write_bytes(config.read_bytes()[:-20])
    assert "config.json is damaged" in refuse(4, "train", "--resume", "run")


@pytest.mark.parametrize("strategy", ["pso-ps", "local-sgd", "synchronous"])
def test_weights_that_are_not_finite(strategy: str, refuse: Refuse) -> None:
    line = refuse(6, "train", "digits", "--strategy", strategy, "--fault", "nan:1:30", "--workers", "3")
    assert "rank 2" in line
    assert "lower the learning rate" in line


def test_a_summary_as_json(capsys: pytest.CaptureFixture[str], place: Path) -> None:
    """One document on standard output, though the workload prints something, too."""
    (place / "mine.py").write_text(f"{FILE}\nprint('loaded')\n")
    assert main(["train", "mine.py:no_accuracy", "--json", "--workers", "2", "--out", "run"]) == 0
    out, err = capsys.readouterr()

    def no_such_number(text: str) -> None:
        raise ValueError(text)

    summary = json.loads(out, parse_constant=no_such_number)
    assert summary["test_accuracy"] is None
    assert summary == json.loads((place / "run" / "summary.json").read_text())
    assert "step 12/12" in err
    assert "loaded" in err
    assert main(["train", "mine.py:no_accuracy", "--no-files"]) == 0
    out, _ = capsys.readouterr()
    assert "accuracy" not in out
    assert "files in" not in out


@pytest.mark.parametrize("workers", ["1", "17"])
def test_one_worker_and_many(workers: str, capsys: pytest.CaptureFixture[str], place: Path) -> None:
    assert main(["train", "digits", "--strategy", "pso-ps", "--steps", "60", "--workers", workers, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["out"] == f"runs/digits-pso-ps-n8-w{workers}-s0"
    assert summary["test_accuracy"] > 0.5
    assert {path.name for path in (place / summary["out"]).iterdir()} == {
        "config.json", "environment.json", "metrics.jsonl", "summary.json", "model.safetensors", "lock",
    }  # fmt: skip


def test_batchnorm_on_small_files_of_the_real_format(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = place / "cifar-10-batches-bin"
    folder.mkdir()
    for name in (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"):
        examples = (bytes([i % 10]) + bytes((37 * i + j) % 256 for j in range(3072)) for i in range(12))
        (folder / name).write_bytes(b"".join(examples))
    train = ("train", "cifar10", "--model", "resnet20", "--data", str(place), "--workers", "2", "--batch", "4")
    train += ("--steps", "4", "--every", "2")
    assert main([*train, "--out", "whole"]) == 0
    assert main([*train, "--stop-at", "3", "--out", "parts"]) == 130
    assert main(["train", "--resume", "parts"]) == 0
    assert weights(place / "whole") == weights(place / "parts")


def test_the_exit_codes_are_those_of_the_errors() -> None:
    def codes(kind: type[SwarmstepError]) -> set[int]:
        return {kind.exit_code}.union(*(codes(child) for child in kind.__subclasses__()))

    assert {*MEANINGS} == codes(SwarmstepError) | {0}
    page = (ROOT / "docs" / "command-line.md").read_text()
    assert all(f"| {code} |" in page for code in MEANINGS)


def test_the_table_of_methods(capsys: pytest.CaptureFixture[str], refuse: Refuse) -> None:
    assert main(["strategies", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert {row["name"] for row in listed} == {*STRATEGIES, "ddp", *ASYNCHRONOUS}
    assert all(row[key] for row in listed for key in ("title", "traffic", "memory", "paper"))
    assert main(["strategies"]) == 0
    table = capsys.readouterr().out
    assert all(any(line.startswith(f"{name} ") for line in table.splitlines()) for name in STRATEGIES)
    for name, kind in STRATEGIES.items():
        if kind.card.bibtex:
            assert main(["cite", name]) == 0
            assert capsys.readouterr().out.startswith("@")
        else:
            assert "expected one of" in refuse(2, "cite", name)


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"swarmstep {__version__}\n"


def test_what_a_machine_has_as_json(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_trial", lambda: "no luck")
    monkeypatch.setattr(doctor, "_has_tls", lambda: False)
    assert main(["doctor", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["problem"] == "no luck"
    assert found["data"] == {"mnist": False, "cifar10": False}


def test_a_paper_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cite", "diloco", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["name"] == "diloco"
    assert found["bibtex"].startswith("@")


@contextlib.contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """A limit on the size of files stands for a full disk: the same call fails, in the middle of a file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


FULL = ("train", "digits", "--steps", "20", "--workers", "2")


def test_a_full_disk_costs_nothing_that_was_saved(refuse: Refuse, place: Path) -> None:
    assert main([*FULL, "--out", "whole"]) == 0
    assert main([*FULL, "--stop-at", "5", "--out", "run"]) == 130
    with full_disk(3_000):
        line = refuse(4, "train", "--resume", "run")
    assert "model.safetensors cannot be written: " in line
    assert [path.name for path in (place / "run").rglob("*partial*")] == []
    assert main(["train", "--resume", "run"]) == 0
    assert weights(place / "run") == weights(place / "whole")


def test_a_checkpoint_that_does_not_fit_does_not_stop_the_training(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*FULL, "--out", "whole"]) == 0
    with full_disk(60_000):
        assert main([*FULL, "--checkpoint-every", "10", "--out", "run"]) == 0
    assert "step-00000010/rank-00000.pt: cannot be written ([Errno 27] File too large)" in capsys.readouterr().err
    assert weights(place / "run") == weights(place / "whole")


def test_rows_that_do_not_fit_wait_for_room(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = place / "run" / "metrics.jsonl"
    logger = RunLogger(place / "run", RunFolder(place / "run"), "a run", Job(quiet=True))
    logger.lead()
    logger.record(step=1)
    with full_disk(file.stat().st_size + 5):  # room for half of a row
        logger.record(step=2)
        logger.record(step=3)
    assert capsys.readouterr().err.count("metrics.jsonl cannot be written") == 1
    logger.record(step=4)
    logger.close()
    assert [json.loads(line)["step"] for line in file.read_text().splitlines()] == [1, 2, 3, 4]
