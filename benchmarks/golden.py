"""A table of runs whose numbers a change of the code must not change, not in one bit.

    python benchmarks/golden.py record before.json        # before the change: minutes
    python benchmarks/golden.py check before.json         # after it: what differs; exits with 1 if anything does
    python benchmarks/golden.py check before.json --only gloo/    # only the rows with this in their names
    python benchmarks/golden.py list

It runs the swarmstep of the Python that runs it, by the command and by the names of the package alone. Groups:

    api/        a small model with BatchNorm, dropout, tied, frozen and bfloat16 weights, in `simulate`
    resumed/    the same, thrown away and rebuilt from its checkpoint in the middle
    carried/    the same, gone on in the middle with fewer workers and with more
    sim/        `swarmstep train digits --backend sim`, in this process
    stopped/    the same, stopped and gone on with, also with fewer and with more workers
    gloo/       the same with real processes, which must end with the weights of simulation
    elastic/    the same with --elastic local, where nobody is lost
    text/       what the command says

A row holds digests of weights, counts of bytes, losses and the rounds; nothing that a clock measured. Numbers are
those of one machine and one version of torch: record and check on the same.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import multiprocessing
import os
import platform
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

SETTINGS = {"OMP_NUM_THREADS": "1", "COLUMNS": "100", "TERM": "dumb", "TORCH_CPP_LOG_LEVEL": "ERROR"}
FOREIGN = ("RANK", "WORLD_SIZE", "SWARMSTEP_WORKER", "SWARMSTEP_SECRET", "SWARMSTEP_SECRET_FILE", "SWARMSTEP_DATA")
os.environ.update(SETTINGS)  # before torch is imported
for variable in FOREIGN:
    os.environ.pop(variable, None)

import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.distributed import TCPStore  # noqa: E402

import swarmstep  # noqa: E402
from swarmstep import STRATEGIES, Comm, Every, Options, Strategy, Synchronizer, simulate  # noqa: E402
from swarmstep.cli import main as command  # noqa: E402

torch.set_num_threads(1)
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["torch._dynamo", "torch.distributed", "safetensors.torch", "swarmstep.cli"])

Row = dict[str, Any]


class Table(dict[str, Callable[[], Row]]):
    """How rows are made, by name; `twins`: the row that one must have the weights of."""

    def __init__(self) -> None:
        super().__init__()
        self.twins: dict[str, str] = {}

    def add(self, name: str, make: Callable[..., Row], *given: Any, twin: str = "") -> None:
        """Add a row that `make(*given)` returns."""
        self[name] = functools.partial(make, *given)
        if twin:
            self.twins[name] = twin

    def join(self, other: Table) -> None:
        """Add the rows of another table."""
        self.update(other)
        self.twins |= other.twins


LIMIT = 900.0  # seconds for a run of real processes; a hang, not a measurement


# What is digested.


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of names, types, shapes and bytes."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().contiguous()
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def short(value: Any) -> str:
    """Return a digest of numbers, strings and lists of them."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def columns(rounds: Sequence[Mapping[str, Any]]) -> Row:
    """Return what rounds were, column by column."""
    names = ("step", "landed", "number", "fragment", "participants", "losses", "bytes_sent", "bytes_received")
    table: Row = {name: [row[name] for row in rounds] for name in names if rounds and name in rounds[0]}
    return {**table, "calls": short([row["calls"] for row in rounds])}


# api/, resumed/ and carried/: a training loop of our own in `simulate`.

STEPS, HALF, EVERY, BATCH, LR = 15, 6, 3, 6, 0.05


class Net(nn.Module):
    """A frozen layer, two that share their weight, BatchNorm, dropout, and a layer of another type."""

    def __init__(self, body: torch.dtype) -> None:
        super().__init__()
        self.front = nn.Linear(6, 6).requires_grad_(False)
        self.first, self.second, self.norm = nn.Linear(6, 6), nn.Linear(6, 6), nn.BatchNorm1d(6)
        self.second.weight = self.first.weight
        self.body, self.head = nn.Linear(6, 8).to(body), nn.Linear(8, 3)
        self.dropout = nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.norm(self.first(self.front(x))).relu()).relu()
        x = self.body(x.to(self.body.weight.dtype)).relu().float()
        return self.head(self.dropout(x))


def batch(step: int, rank: int) -> tuple[Tensor, Tensor]:
    """Return inputs and targets; each rank has a distribution of its own."""
    source = torch.Generator().manual_seed(1000 * step + rank)
    inputs = torch.randn(BATCH, 6, generator=source) + 0.3 * rank
    return inputs, torch.randint(0, 3, (BATCH,), generator=source)


def probe(model: nn.Module, _step: int) -> Tensor:
    inputs, targets = batch(999, 0)
    return nn.functional.cross_entropy(model(inputs), targets)


@dataclasses.dataclass(frozen=True)
class Case:
    """How the model is trained: by which strategy, with which options and inner optimizer."""

    strategy: Strategy
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict[str, Any])
    adamw: bool = False
    body: torch.dtype = torch.float32
    workers: int = 3


class Trainer:
    """One worker."""

    def __init__(self, case: Case, comm: Comm) -> None:
        torch.manual_seed(comm.rank)  # the Synchronizer takes rank 0's model
        self.comm = comm
        self.model = Net(case.body)
        options = Options(seed=5, probe=probe, probe_cost=0.1, **case.options)
        self.sync = Synchronizer(self.model, case.strategy, comm, options)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer: torch.optim.Optimizer = torch.optim.SGD(trained, lr=LR, momentum=0.9)
        if case.adamw:
            self.optimizer = torch.optim.AdamW(trained, lr=LR, weight_decay=0.01)
        self.rounds: list[Row] = []
        self.passed = hashlib.sha256()  # the weights after each round

    def advance(self, upto: int) -> None:
        """Train to a step."""
        while self.sync.steps < upto:
            step = self.sync.steps + 1
            torch.manual_seed(1000 * step + self.comm.rank)  # dropout
            inputs, targets = batch(step, self.comm.rank)
            self.optimizer.zero_grad()
            loss = nn.functional.cross_entropy(self.model(inputs), targets)
            loss.backward()
            self.optimizer.step()
            if report := self.sync.step(loss, lr=LR):
                self.rounds.append(dataclasses.asdict(report))
                self.passed.update(digest(self.model.state_dict()).encode())

    def finish(self) -> Row:
        """Return what came out."""
        self.rounds += [dataclasses.asdict(report) for report in self.sync.finish()]
        return {
            "weights": digest(self.model.state_dict()),
            "passed": self.passed.hexdigest(),
            "sent": self.sync.bytes_sent,
            "received": self.sync.bytes_received,
            "rounds": columns(self.rounds),
            "distrusted": [[(d["rank"], d["since"]) for d in row["distrusted"]] for row in self.rounds],
        }

    def save(self) -> bytes:
        """Return everything needed to go on."""
        parts = {"model": self.model, "optimizer": self.optimizer, "sync": self.sync}
        file = io.BytesIO()
        torch.save({name: part.state_dict() for name, part in parts.items()}, file)
        return file.getvalue()

    def load(self, data: bytes, *sources: Any) -> None:
        saved = torch.load(io.BytesIO(data), weights_only=True)
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.sync.load_state_dict(saved["sync"], *sources)


def outcome(rows: Sequence[Row]) -> Row:
    """Return what the workers tell, together: what is a list has an entry for each rank."""
    together: Row = {name: [row[name] for row in rows] for name in ("weights", "passed", "sent", "received")}
    return {**together, "rounds": rows[0]["rounds"], "distrusted": rows[0]["distrusted"]}


def whole(case: Case) -> Row:
    """Train from the first step to the last."""

    def train(comm: Comm) -> Row:
        trainer = Trainer(case, comm)
        trainer.advance(STEPS)
        return trainer.finish()

    return outcome(simulate(train, case.workers))


def resumed(case: Case) -> Row:
    """Train, but start again from a checkpoint in the middle."""

    def train(comm: Comm) -> Row:
        first = Trainer(case, comm)
        first.advance(HALF + 1)  # where a round may be under way
        second = Trainer(case, comm)
        second.load(first.save())
        second.advance(STEPS)
        return second.finish()

    return outcome(simulate(train, case.workers))


def carried(case: Case, sources: Sequence[int | None]) -> Row:
    """Train to the middle, and go on in a changed group."""

    def begin(comm: Comm) -> bytes:
        trainer = Trainer(case, comm)
        trainer.advance(HALF)
        return trainer.save()

    def go_on(comm: Comm) -> Row:
        trainer = Trainer(case, comm)
        source = sources[comm.rank]
        trainer.load(saved[0 if source is None else source], sources)
        trainer.advance(STEPS)
        return trainer.finish()

    saved = simulate(begin, case.workers)
    return outcome(simulate(go_on, len(sources)))


CODECS = {
    "bfloat16": swarmstep.Bfloat16(),
    "int8": swarmstep.Int8(16),
    "int4": swarmstep.Int4(16),
    "topk": swarmstep.TopK(0.1),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "delay1": {"delay": 1},
    "delay4-mix": {"delay": 4, "mix": 0.5},
    "fragments": {"fragments": 2},
    "delay-fragments-int8": {"delay": 2, "fragments": 2, "codec": CODECS["int8"]},
    "local-buffers": {"buffers": "local"},
    "copies": {"views": False, "offload": "cpu"},
    **{name: {"codec": codec} for name, codec in CODECS.items()},
}
SETTINGS_OF: dict[str, dict[str, dict[str, Any]]] = {
    "pso-ps": {
        "historical": {"best": "historical"},
        "decay": {"best": "historical", "best_decay": 0.5},
        "ring": {"neighbours": "ring"},
        "ring-historical": {"neighbours": "ring", "best": "historical", "outcome": "mean"},
        "vector": {"random": "vector"},
        "weight": {"random": "weight"},
        "none": {"random": "none"},
        "probe": {"fitness": "probe"},
        "mean": {"outcome": "mean"},
        "clamp": {"clamp": 0.01},
        "constriction": {"constriction": True, "cognitive": 2.05, "social": 2.05},
    },
    "swarm": {
        "uniform": {"trust": "uniform"},
        "loss": {"trust": "loss"},
        "one-out": {"trust": "leave_one_out"},
        "audit": {"audit": True, "budget": 1.0},
        "no-look": {"look_ahead": False},
    },
    "hierarchical": {"2x2": {"local_size": 2, "outer_every": 2}, "4x1": {"local_size": 1, "outer_every": 1}},
    "bmuf": {"nesterov": {"nesterov": True}, "momentum": {"momentum": 0.3, "block_lr": 0.5}},
    "noloco": {"gossip": {"gossip": 0.3}},
    "gossip-ring": {"reach": {"reach": 2}},
    "trimmed-mean": {"half": {"trim": 0.4}},
}
METHODS = [name for name in STRATEGIES if name != "synchronous"]  # whose rounds change weights
WHENS = {
    "warmup": None,
    "never": swarmstep.Never(),
    "change": swarmstep.GradientChange(0.3, window=2),
    "qsr": swarmstep.QuadraticRule(2, 0.1),
}


def api_rows() -> Table:
    cases: dict[str, Case] = {}
    rows = Table()
    for name in METHODS:
        kind = STRATEGIES[name]
        plain = kind(when=Every(EVERY))
        cases |= {
            name: Case(plain),
            f"{name}/adamw": Case(plain, adamw=True, workers=2),
            f"{name}/mixed": Case(plain, body=torch.bfloat16),
        }
        cases |= {f"{name}/{label}": Case(plain, options) for label, options in OPTIONS.items()}
        for label, settings in SETTINGS_OF.get(name, {}).items():
            cases[f"{name}/set-{label}"] = Case(kind(when=Every(EVERY), **settings), workers=4)
        for label, when in WHENS.items():
            cases[f"{name}/when-{label}"] = Case(
                kind(when=when) if when else swarmstep.Warmup(kind(when=Every(4)), 6)
            )
        for label in ("", "/delay-fragments-int8", "/topk", "/adamw", "/when-change"):
            rows.add(f"resumed/{name}{label}", resumed, cases[name + label], twin=f"api/{name}{label}")
        for label, sources in {"fewer": [2, 0], "more": [1, None, 0, 2], "swapped": [0, None, 2]}.items():
            rows.add(f"carried/{name}/{label}", carried, Case(plain), sources)
    for name, case in cases.items():
        rows.add(f"api/{name}", whole, case)
    return rows


# sim/, gloo/ and elastic/: the command.

LOADED = ("--silence", "120")  # nobody is taken for lost where the machine has much else to do
DIGITS = ("digits", "--steps", "36", "--eval-every", "16")
OFTEN = ("--every", "4")
Call = Callable[[Sequence[str]], tuple[Any, str]]


def in_process(arguments: Sequence[str]) -> tuple[int, str]:
    """Run the command here; return its exit code and what it said."""
    out, errors = io.StringIO(), io.StringIO()
    showwarning = warnings.showwarning
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        try:
            code = command([*arguments])
        except SystemExit as error:  # --help
            code = int(error.code or 0)
        finally:
            warnings.showwarning = showwarning
    return code, errors.getvalue() or out.getvalue()


def launched(arguments: Sequence[str]) -> tuple[int, str]:
    """The same in a process of its own, which may start others."""
    ended = subprocess.run(
        [sys.executable, "-m", "swarmstep", *arguments], capture_output=True, text=True, timeout=LIMIT, check=False
    )
    return ended.returncode, ended.stderr or ended.stdout


def ranked(workers: int, arguments: Sequence[str]) -> tuple[list[int | None], str]:
    """The same in real processes as torchrun starts them, but forked from one that has imported torch."""
    store = TCPStore("127.0.0.1", 0, is_master=True)
    place = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "WORLD_SIZE": str(workers),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    with tempfile.NamedTemporaryFile("r") as said:
        processes = [
            FORKS.Process(target=be_rank, args=(arguments, {**SETTINGS, **place, "RANK": str(rank)}, said.name))
            for rank in range(workers)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(LIMIT)
            process.kill()  # if it hangs
            process.join()
        return [process.exitcode for process in processes], said.read()


def be_rank(arguments: Sequence[str], environment: Mapping[str, str], said: str) -> None:
    """Be one of the processes; what the command says of errors goes into a file."""
    os.environ.update(environment)
    for number, path in ((1, os.devnull), (2, said if environment["RANK"] == "0" else os.devnull)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), number)
    sys.exit(command([*arguments]))


def trained(call: Call, *attempts: Sequence[str]) -> Row:
    """Run `swarmstep train` in a folder, and each further attempt with --resume; return what came out."""
    with tempfile.TemporaryDirectory(prefix="golden-") as name:
        folder, where, codes, said = Path(name) / "run", "--out", [], ""
        for options in attempts:
            code, said = call(["train", where, str(folder), *options])
            codes.append(code)
            where = "--resume"
        row: Row = {"exits": codes}
        if codes[-1] not in (0, [0] * 3, [0] * 4):
            row["said"] = said.replace(str(folder), "FOLDER").strip().splitlines()[-1:]
        return {**row, **outcome_in(folder)}


def outcome_in(folder: Path) -> Row:
    """Return what a run has left in its folder."""
    row: Row = {"files": sorted(entry.name for entry in folder.iterdir())}
    summary, model, metrics = folder / "summary.json", folder / "model.safetensors", folder / "metrics.jsonl"
    if model.exists():
        row["weights"] = digest(load_file(model))
    if summary.exists():
        row |= of_summary(json.loads(summary.read_text()))
    if metrics.exists():
        lines = [json.loads(line) for line in metrics.read_text().splitlines()]
        row["rounds"] = columns([line for line in lines if line["kind"] == "round"])
        row["looks"] = [(line["step"], line["losses"]) for line in lines if line["kind"] == "look"]
        row["evaluations"] = [judged(line) for line in lines if line["kind"] == "evaluation"]
    return row


def of_summary(summary: Row) -> Row:
    scores = ("train_loss", "test_loss", "test_accuracy", "validation_loss", "validation_accuracy")
    counts = ("bytes_sent_per_worker", "bytes_received_per_worker", "steps_taken", "parameters")
    found = {name: summary[name] for name in (*scores, *counts)}
    found["count of rounds"] = summary["rounds"]
    return {**found, "distrusted": [(d["rank"], d["since"]) for d in summary["distrusted"]]}


def judged(line: Row) -> Row:
    return {name: line[name] for name in sorted(line) if name not in ("kind", "seconds")}


SIM: dict[str, tuple[str, ...]] = {
    "synchronous": ("--strategy", "synchronous", "--steps", "16"),
    "synchronous-noise": ("--strategy", "synchronous", "--steps", "16", "--fault", "noise:1:0.01"),
    "independent": ("--strategy", "independent"),
    "independent-nan": ("--strategy", "independent", "--fault", "nan:1:20"),
    "one-worker": ("--strategy", "swarm", *OFTEN, "--workers", "1"),
    "defaults": ("--workers", "3"),
    "until": ("--strategy", "local-sgd", *OFTEN, "--until-accuracy", "0.5", "--eval-every", "8"),
    "adamw-cosine": (
        "--strategy",
        "slowmo",
        *OFTEN,
        "--optimizer",
        "adamw",
        "--lr",
        "0.002",
        "--schedule",
        "cosine",
        "--weight-decay",
        "0.1",
    ),
    "sgd-batch-seed": ("--strategy", "diloco", *OFTEN, "--optimizer", "sgd", "--batch", "8", "--seed", "7"),
}
MANY = ("local-sgd", "swarm", "diloco")  # strategies that are tried with every option
CHOICES = {
    "bfloat16": ("--codec", "bfloat16"),
    "int8": ("--codec", "int8"),
    "int4": ("--codec", "int4"),
    "topk": ("--codec", "topk:0.05"),
    "delay1": ("--delay", "1"),
    "delay4": ("--delay", "4"),
    "delay2-mix": ("--delay", "2", "--mix", "0.5"),
    "fragments": ("--fragments", "2"),
    "delay-fragments-int8": ("--delay", "2", "--fragments", "2", "--codec", "int8"),
}
TRIGGERS = {
    "warmup": ("--when", "warmup:8,every:4"),
    "change": ("--when", "change:0.05", "--steps", "64"),  # the first 50 are a round each
    "qsr": ("--when", "qsr:2,0.05", "--schedule", "cosine"),
    "never": ("--when", "never"),
}
SHARDS = ("classes:3", "dirichlet:0.3", "bad-labels:1", "dirichlet:1+bad-labels:2", "dealt", "seldp", "classes:1")
FAULTS = ("noise:1:0.5", "sign:1", "nan:1:10", "scale:1:3", "noise:2:0.01")
TAUGHT = ("swarm", "local-sgd", "median", "trimmed-mean", "pso-ps")  # strategies that are tried with faults


def sim_options() -> dict[str, tuple[str, ...]]:
    """Return the runs that are simulated: the options of each."""
    runs = dict(SIM)
    for name in METHODS:
        if name != "independent":
            runs[name] = ("--strategy", name, *OFTEN)
        for label, settings in SETTINGS_OF.get(name, {}).items():
            given = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
            runs[f"{name}/set-{label}"] = ("--strategy", name, *OFTEN, *given)
    for name in MANY:
        runs |= {f"{name}/{label}": ("--strategy", name, *OFTEN, *given) for label, given in CHOICES.items()}
        runs |= {f"{name}/when-{label}": ("--strategy", name, *given) for label, given in TRIGGERS.items()}
        runs |= {f"{name}/shards-{spec}": ("--strategy", name, *OFTEN, "--shards", spec) for spec in SHARDS}
    for name in TAUGHT:
        runs |= {f"{name}/fault-{spec}": ("--strategy", name, *OFTEN, "--fault", spec) for spec in FAULTS}
    return runs


STOP = ("--stop-at", "22", "--checkpoint-every", "10")
STOPPED = {
    "local-sgd": ("--strategy", "local-sgd", *OFTEN),
    "swarm": ("--strategy", "swarm", *OFTEN),
    "pso-ps": ("--strategy", "pso-ps", *OFTEN),
    "diloco": ("--strategy", "diloco", *OFTEN),
    "synchronous": ("--strategy", "synchronous", "--steps", "30"),
    "delay-fragments-int8": ("--strategy", "local-sgd", *OFTEN, *CHOICES["delay-fragments-int8"]),
    "topk": ("--strategy", "swarm", *OFTEN, *CHOICES["topk"]),
    "change": ("--strategy", "swarm", *TRIGGERS["change"]),
    "dealt": ("--strategy", "local-sgd", *OFTEN, "--shards", "dealt"),
}
GLOO: dict[str, tuple[str, ...]] = {
    "local-sgd": ("--strategy", "local-sgd", *OFTEN),
    "pso-ps": ("--strategy", "pso-ps", *OFTEN),
    "swarm": ("--strategy", "swarm", *OFTEN),
    "diloco-delay-int8": ("--strategy", "diloco", *OFTEN, "--delay", "3", "--codec", "int8"),
    "gossip-exponential": ("--strategy", "gossip-exponential", *OFTEN),
    "synchronous": ("--strategy", "synchronous", "--steps", "16"),
    "ddp": ("--strategy", "ddp", "--steps", "16"),
    "hierarchical": ("--strategy", "hierarchical", *OFTEN, "--set", "local_size=2", "--set", "outer_every=2"),
    "median-nan": ("--strategy", "median", *OFTEN, "--fault", "nan:1:10"),
    "local-sgd-nan": ("--strategy", "local-sgd", *OFTEN, "--fault", "nan:1:10"),
    "swarm-change-topk": ("--strategy", "swarm", "--when", "change:0.3", "--codec", "topk:0.05"),
}
FOUR = "hierarchical"  # has four workers, two on each host; the others three
ELASTIC: dict[str, tuple[str, ...]] = {
    "swarm": ("--strategy", "swarm", *OFTEN),
    "diloco-delay-int8": ("--strategy", "diloco", *OFTEN, "--delay", "3", "--codec", "int8"),
}


def workers_of(name: str) -> list[str]:
    return ["--workers", "4" if name == FOUR else "3"]


def command_rows() -> Table:
    """Return the runs in this process."""
    rows = Table()
    for name, options in sim_options().items():
        rows.add(f"sim/{name}", trained, in_process, [*DIGITS, *options])
    for name, options in STOPPED.items():
        rows.add(f"stopped/{name}/whole", trained, in_process, [*DIGITS, *options])
        first = [*DIGITS, *options, *STOP]
        rows.add(f"stopped/{name}/resumed", trained, in_process, first, [], twin=f"stopped/{name}/whole")
        for workers in ("3", "5"):
            rows.add(f"stopped/{name}/with-{workers}", trained, in_process, first, ["--workers", workers])
    for name, options in GLOO.items():
        if name != "ddp":
            rows.add(f"gloo/{name}/simulated", trained, in_process, [*DIGITS, *workers_of(name), *options])
    return rows


def process_rows() -> Table:
    """Return the runs with real processes."""
    rows = Table()
    for name, options in GLOO.items():
        given = [*DIGITS, *workers_of(name), *options, "--backend", "gloo", *LOADED]
        call = functools.partial(ranked, 4 if name == FOUR else 3)
        rows.add(f"gloo/{name}", trained, call, given, twin="" if name == "ddp" else f"gloo/{name}/simulated")
    three, gloo = [*DIGITS, "--workers", "3", *LOADED], ["--backend", "gloo"]
    delayed, ranks = "diloco-delay-int8", functools.partial(ranked, 3)
    stopped, twin = [*three, *GLOO[delayed], *STOP], f"gloo/{delayed}/simulated"
    rows.add("gloo/resumed", trained, ranks, [*stopped, *gloo], [], twin=twin)
    rows.add("gloo/launched", trained, launched, [*three, *GLOO["swarm"], *gloo], twin="gloo/swarm/simulated")
    for name, options in ELASTIC.items():
        rows.add(f"elastic/{name}", trained, launched, [*three, *options, "--elastic", "local"])
    return rows


TEXTS: dict[str, tuple[str, ...]] = {
    "strategies": ("strategies",),
    "strategies-json": ("strategies", "--json"),
    **{f"cite-{name}": ("cite", name) for name in (*STRATEGIES, "nobody")},
    **{
        f"help-{'-'.join(name) or 'all'}": (*name, "--help")
        for name in ((), ("train",), ("run",), ("chaos",), ("bench",), ("compare",), ("report",))
    },
    "version": ("--version",),
    "no-command": (),
    "wrong-strategy": ("train", "digits", "--strategy", "nobody", "--no-files"),
    "wrong-setting": ("train", "digits", "--set", "nothing=1", "--no-files"),
    "wrong-value": ("train", "digits", "--set", "social=much", "--no-files"),
    "wrong-range": ("train", "digits", "--set", "social=9", "--no-files"),
    "wrong-trigger": ("train", "digits", "--when", "seldom", "--no-files"),
    "wrong-codec": ("train", "digits", "--codec", "int3", "--no-files"),
    "wrong-shards": ("train", "digits", "--shards", "classes:11", "--no-files"),
    "wrong-fault": ("train", "digits", "--fault", "sign:9", "--no-files"),
    "wrong-fragments": ("train", "digits", "--fragments", "9", "--every", "4", "--no-files"),
    "wrong-delay": ("train", "digits", "--delay", "-1", "--no-files"),
    "wrong-stop": ("train", "digits", "--steps", "8", "--stop-at", "9", "--no-files"),
    "wrong-workload": ("train", "letters", "--no-files"),
    "no-workload": ("train", "--no-files"),
    "no-run": ("train", "--resume", "/nonexistent"),
    "ddp-simulated": ("train", "digits", "--strategy", "ddp", "--no-files"),
}


def text_row(arguments: Sequence[str]) -> Row:
    code, said = in_process(arguments)
    return {"exit": code, "said": said if len(said) < 1000 else short(said)}


def text_rows() -> Table:
    rows = Table()
    for name, arguments in TEXTS.items():
        rows.add(f"text/{name}", text_row, arguments)
    return rows


# The table.


def made(row: Callable[[], Row]) -> Row:
    """Return the row, or which error there was in place of it; as JSON has it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = row()
        except Exception as error:  # what does not go together says so, and that must stay, too
            found = {"error": f"{type(error).__name__}: {error}"}
    return json.loads(json.dumps(found))


def tables_here() -> tuple[Table, ...]:
    return api_rows(), command_rows(), text_rows()


def table(only: str) -> dict[str, Row]:
    """Return all rows with `only` in their names; the real processes run beside what is in this one."""
    here, apart = Table(), process_rows()
    for rows in tables_here():
        here.join(rows)
    twins = {name: twin for name, twin in (here.twins | apart.twins).items() if only in name}
    with ThreadPoolExecutor(1) as pool:
        started: dict[str, Future[Row]] = {name: pool.submit(row) for name, row in apart.items() if only in name}
        found = {name: made(row) for name, row in here.items() if only in name or name in twins.values()}
        found |= {name: made(future.result) for name, future in started.items()}
    for name, twin in twins.items():
        found[name][f"as {twin}"] = found[name].get("weights") == found[twin].get("weights")
    return {name: row for name, row in found.items() if only in name}


def circumstances() -> Row:
    return {"torch": torch.__version__, "python": platform.python_version(), "machine": platform.machine()}


def differences(before: Row, now: Row) -> dict[str, str]:
    """Return the fields that differ, and how."""
    fields = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return {name: f"{_brief(before.get(name))} -> {_brief(now.get(name))}" for name in fields}


def _brief(value: Any) -> str:
    said = json.dumps(value)
    return said if len(said) <= 100 else f"{said[:97]}..."


def record(file: Path, only: str) -> int:
    rows = table(only)
    file.write_text(json.dumps({"made with": circumstances(), "rows": rows}, indent=0) + "\n")
    print(f"{len(rows)} rows in {file}")
    return 0


def check(file: Path, only: str) -> int:
    saved = json.loads(file.read_text())
    if saved["made with"] != circumstances():
        print(f"made with {saved['made with']}, this is {circumstances()}: numbers may differ for that alone")
    before, now = {name: row for name, row in saved["rows"].items() if only in name}, table(only)
    odd = 0
    for name in {**before, **now}:
        found = differences(before.get(name, {}), now.get(name, {}))
        odd += bool(found)
        for field, change in found.items():
            print(f"{name}: {field}: {change}")
    print(f"{len({**before, **now}) - odd} rows equal, {odd} differ")
    return 1 if odd else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("record", "check", "list"))
    parser.add_argument("file", type=Path, nargs="?", default=Path("golden.json"), metavar="FILE")
    parser.add_argument("--only", default="", metavar="SUBSTRING", help="only the rows with this in their names")
    args = parser.parse_args()
    if args.what == "list":
        names = [name for rows in (*tables_here(), process_rows()) for name in rows if args.only in name]
        print("\n".join(names))
        return 0
    return (record if args.what == "record" else check)(args.file, args.only)


if __name__ == "__main__":
    sys.exit(main())
