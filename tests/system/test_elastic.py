"""Elastic runs by the command line, with real processes that are killed, stopped and started again."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from swarmstep.checkpoint import loader
from swarmstep.errors import CheckpointError

pytestmark = pytest.mark.usefixtures("forked")

LIMIT = 120.0  # seconds; a hang, not a measurement
WORKLOADS = Path(__file__).parents[1] / "support" / "runs.py"
ELASTIC = ("--elastic", "local", "--every", "4")


class Run:
    """`swarmstep train`: the supervisor of an elastic run, and its workers."""

    def __init__(self, folder: Path, *options: str, workload: str | None = "digits", workers: int = 3) -> None:
        self.folder, self.workers = folder, workers
        self.errors = folder.with_suffix(".errors")
        where = ["--out", str(folder), workload] if workload else ["--resume", str(folder)]
        command = [sys.executable, "-m", "swarmstep", "train", *where, "--workers", str(workers), *options]
        with self.errors.open("wb") as file:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=file,
                env={**os.environ, "TORCH_CPP_LOG_LEVEL": "ERROR"},
            )
        self.pids: dict[int, int] = {}  # of each slot

    def said(self) -> str:
        return self.errors.read_text()

    def until(self, true: Callable[[], Any], what: str) -> Any:
        """Wait for something that happens while the run goes on."""
        deadline = time.monotonic() + LIMIT
        while not (found := true()):
            assert time.monotonic() < deadline, (f"waited in vain for {what}", self.said())
            assert self.process.poll() is None, (f"ended without {what}", self.said())
            time.sleep(0.02)
        return found

    def told(self, name: str, kind: str) -> list[dict[str, Any]]:
        """Return the events of a kind that a worker has told."""
        return [e for e in events(self.folder, name.partition(".")[0]) if (e["worker"], e["kind"]) == (name, kind)]

    def await_round(self, *names: str, number: int = 1, alone: bool = False) -> None:
        """Wait until these workers, or only they if `alone`, have been in a round of at least that number."""

        def seen() -> bool:
            last = [(self.told(name, "round") or [{"round": 0}])[-1] for name in names]
            return all(e["round"] >= number and (not alone or e["members"] == [*names]) for e in last)

        self.until(seen, f"round {number} of {names}")

    def find_workers(self) -> None:
        """Learn the process of each slot: they start in the order of the slots, and are replaced one at a time."""
        found = self.until(lambda: len(p := workers_of(self.process.pid)) == self.workers and p, "all workers")
        new = [pid for pid in found if pid not in self.pids.values()]
        empty = [slot for slot in range(self.workers) if self.pids.get(slot) not in found]
        self.pids |= dict(zip(empty, new, strict=True))

    def kill(self, slot: int) -> None:
        """Kill the worker of a slot, and wait until its successor has been in a round."""
        self.find_workers()
        name = newest_of(self.folder, slot)
        os.kill(self.pids[slot], signal.SIGKILL)
        successor = f"{slot}.{int(name.partition('.')[2]) + 1}"
        self.await_round(successor)

    def end(self, number: int | None = None) -> int:
        if number is not None:
            self.process.send_signal(number)
        return self.process.wait(LIMIT)


def events(folder: Path, slot: str) -> list[dict[str, Any]]:
    file = folder / "events" / f"{slot}.jsonl"
    lines = file.read_text().split("\n")[:-1] if file.exists() else []  # a line without its end may be half there
    return [json.loads(line) for line in lines]


def newest_of(folder: Path, slot: int) -> str:
    return str(events(folder, str(slot))[-1]["worker"])


def children(pid: int) -> list[int]:
    """Return the processes that a process has started and that live, in the order of their start."""
    try:
        found = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        return [child for child in found if alive(child)]
    except OSError:
        return []


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def workers_of(supervisor: int) -> list[int]:
    """Return the workers' processes: they are children of the one that the supervisor forks them from."""
    return [worker for server in children(supervisor) for worker in children(server)]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Run]]:
    for name in ("SWARMSTEP_SECRET", "SWARMSTEP_SECRET_FILE", "RANK", "WORLD_SIZE", "SWARMSTEP_WORKER"):
        monkeypatch.delenv(name, raising=False)
    runs: list[Run] = []

    def start(*options: str, name: str = "run", **more: Any) -> Run:
        runs.append(Run(tmp_path / name, *options, **more))
        return runs[-1]

    yield start
    for run in runs:
        run.process.kill()  # its workers end with it
        run.process.wait(LIMIT)


def numbers(folder: Path) -> list[int]:
    """Return the numbers of the rounds in metrics.jsonl."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row["number"] for row in rows if row["kind"] == "round"]


def summary(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "summary.json").read_text()))


def check_rounds(folder: Path, final: set[str]) -> None:
    """Check that each round was done once by each of its members, up to the last by those who saw the end."""
    told = [e for file in (folder / "events").glob("*.jsonl") for e in events(folder, file.stem)]
    rounds = [e for e in told if e["kind"] == "round"]
    last = summary(folder)["rounds"]
    assert {e["round"] for e in rounds} == {*range(1, last + 1)}
    for number in range(1, last + 1):
        same = [(e["step"], e["members"], e["loss"]) for e in rounds if e["round"] == number]
        assert all(one == same[0] for one in same)
    assert {e["worker"] for e in told if e["kind"] == "done"} == final
    for name in {e["worker"] for e in rounds}:
        mine = [e["round"] for e in rounds if e["worker"] == name]
        assert mine == sorted({*mine})
        joined = [e["round"] for e in told if e["kind"] == "joined" and e["worker"] == name]
        assert mine[0] in (joined[0], joined[0] + 1)  # the first where a round lands as it joins
        if name in final:
            assert mine[-1] == last
    assert len({*numbers(folder)}) == len(numbers(folder))


ALL_AT_ONCE = ("--eval-every", "4", "--checkpoint-every", "4")  # whatever is collective outside rounds would show


@pytest.mark.parametrize("often", [ALL_AT_ONCE, pytest.param((), marks=pytest.mark.slow)])
def test_each_worker_is_killed_once(often: tuple[str, ...], start: Callable[..., Run]) -> None:
    run = start(*ELASTIC, "--steps", "120", "--pace", "0.05", *often)
    run.await_round("0.0", "1.0", "2.0")
    for slot in (0, 1, 2):
        run.kill(slot)
    assert run.end() == 0, run.said()
    said = run.said()
    assert all(f"worker {slot}.0 is lost: worker {slot}.0 was ended by SIGKILL" in said for slot in range(3))
    check_rounds(run.folder, {"0.1", "1.1", "2.1"})
    found = summary(run.folder)
    assert (found["steps_taken"], found["rounds"]) == (120, 30)
    assert found["test_accuracy"] > 0.5  # it has learnt: chance is 0.1
    assert (run.folder / "model.safetensors").exists()


@pytest.mark.slow
def test_a_newcomer_takes_over_both_optimizers(start: Callable[..., Run]) -> None:
    run = start(*ELASTIC, "--steps", "80", "--pace", "0.03", workload=f"{WORKLOADS}:text")
    run.await_round("0.0", "1.0", "2.0")
    run.kill(1)
    assert run.end() == 0, run.said()
    check_rounds(run.folder, {"0.0", "1.1", "2.0"})
    found = summary(run.folder)
    assert (found["optimizer"], found["steps_taken"], found["corpus"]) == ("muon", 80, "0" * 64)


def test_an_interrupted_run_goes_on_with_fewer_and_with_more(start: Callable[..., Run]) -> None:
    run = start(*ELASTIC, "--steps", "64", "--pace", "0.03", "--checkpoint-every", "8")
    run.await_round("0.0", "1.0", "2.0", number=3)
    assert run.end(signal.SIGINT) == 130
    said = re.search(
        r"swarmstep: stopped at step (\d+) of 64, after a round; go on with: .* --resume ", run.said()
    )
    assert said, run.said()
    step, states = loader.load_any(run.folder / "checkpoints")
    assert (step, len(states)) == (int(said[1]), 3)
    assert step < 64
    assert not (run.folder / "summary.json").exists()
    for workers in (2, 5):
        shutil.copytree(run.folder, run.folder.with_name(f"of-{workers}"))
    both = [start(name=f"of-{workers}", workload=None, workers=workers) for workers in (2, 5)]
    for more in both:
        assert more.end() == 0, more.said()
        assert numbers(more.folder) == [*range(1, 17)]
        assert summary(more.folder)["steps_taken"] == 64
        rows = [json.loads(line) for line in (more.folder / "metrics.jsonl").read_text().splitlines()]
        assert {len(row["members"]) for row in rows if row["kind"] == "round"} == {3, more.workers}


def whole(folder: Path) -> int:
    """Return the step of the newest whole checkpoint, 0 if there is none."""
    try:
        return loader.newest(folder / "checkpoints")
    except CheckpointError:
        return 0


def test_the_supervisor_is_killed(start: Callable[..., Run]) -> None:
    run = start(*ELASTIC, "--steps", "64", "--pace", "0.03", "--checkpoint-every", "8")
    run.find_workers()
    run.until(lambda: whole(run.folder) >= 16, "a checkpoint")
    assert run.end(signal.SIGKILL) == -signal.SIGKILL
    deadline = time.monotonic() + LIMIT
    while any(map(alive, run.pids.values())):
        assert time.monotonic() < deadline, "a worker outlived its supervisor"
        time.sleep(0.02)
    step = whole(run.folder)
    assert 16 <= step < 64
    more = start(workload=None)
    assert more.end() == 0, more.said()
    assert numbers(run.folder) == [*range(1, 17)]
    joined = [e["step"] for e in events(run.folder, "0") if e["kind"] == "joined"]
    assert joined == [0, step]


def test_a_thawed_worker_comes_back_and_nobody_ends(start: Callable[..., Run]) -> None:
    run = start(*ELASTIC, "--steps", "80", "--pace", "0.03", "--fragments", "2", "--silence", "2")
    run.await_round("0.0", "1.0", "2.0", number=3)
    run.find_workers()
    before = dict(run.pids)
    os.kill(run.pids[0], signal.SIGSTOP)
    run.await_round("1.0", "2.0", number=3, alone=True)
    os.kill(run.pids[0], signal.SIGCONT)
    run.until(lambda: [e["newcomer"] for e in run.told("0.0", "joined")] == [False, True], "the return of 0.0")
    run.find_workers()
    assert run.pids == before
    assert run.end() == 0, run.said()
    assert "is lost" not in run.said()
    assert {e["worker"] for s in "012" for e in events(run.folder, s) if e["kind"] == "done"} == {
        "0.0",
        "1.0",
        "2.0",
    }
    assert summary(run.folder)["steps_taken"] == 80
    assert run.told("0.0", "round")[-1]["members"] == ["1.0", "2.0", "0.0"]


@pytest.mark.slow
def test_one_worker_alone_goes_on_from_its_checkpoint(start: Callable[..., Run]) -> None:
    run = start(*ELASTIC, "--steps", "120", "--pace", "0.03", "--checkpoint-every", "8", workers=1)
    run.until(lambda: whole(run.folder), "a checkpoint")
    run.kill(0)
    assert run.end() == 0, run.said()
    assert numbers(run.folder) == [*range(1, 31)]
    assert run.told("0.1", "joined")[0]["step"] >= 8
    assert summary(run.folder)["steps_taken"] == 120


DIES_AT_THE_END = """
import os, signal, traceback
from pathlib import Path
import torch
from torch import nn
from swarmstep.workloads import Defaults, Examples, Workload

class Model(nn.Linear):
    def forward(self, x):
        marker = Path(__file__).with_suffix(".died")
        concludes = "conclude" in {frame.name for frame in traceback.extract_stack()}
        if concludes and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x)

def classes():
    x = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    examples = Examples(x, x[:, :3].argmax(1))
    defaults = Defaults(optimizer="sgd", lr=0.1, batch=4, every=4, steps=16, eval_every=1000)
    return Workload("classes", examples, examples, {"linear": lambda: Model(4, 3)}, defaults, classes=3)
"""


@pytest.mark.slow
def test_who_is_killed_while_it_evaluates_the_result_has_a_successor(
    start: Callable[..., Run], tmp_path: Path
) -> None:
    """The run must not be over before: the command would end with 0, and without a result."""
    (tmp_path / "own.py").write_text(DIES_AT_THE_END)
    run = start(*ELASTIC, "--checkpoint-every", "8", workload=f"{tmp_path / 'own.py'}:classes", workers=1)
    assert run.end() == 0, run.said()
    assert "worker 0.0 is lost: worker 0.0 was ended by SIGKILL" in run.said()
    assert summary(run.folder)["steps_taken"] == 16
    assert (run.folder / "model.safetensors").exists()


@pytest.mark.slow
@pytest.mark.parametrize("model", ["small", "tied", "half"])  # BatchNorm and dropout; tied weights; bfloat16
def test_a_model_of_ones_own_bears_a_kill(model: str, start: Callable[..., Run]) -> None:
    run = start(*ELASTIC, "--steps", "120", "--pace", "0.03", "--model", model, workload=f"{WORKLOADS}:classes")
    run.await_round("0.0", "1.0", "2.0")
    run.kill(0)
    assert run.end() == 0, run.said()
    check_rounds(run.folder, {"0.1", "1.0", "2.0"})
    assert summary(run.folder)["rounds"] == 30


@pytest.mark.slow
def test_a_kill_with_a_round_always_under_way(start: Callable[..., Run]) -> None:
    run = start(*ELASTIC, "--steps", "240", "--pace", "0.03", "--delay", "4", "--checkpoint-every", "16")
    run.await_round("0.0", "1.0", "2.0", number=2)
    run.kill(1)
    run.until(lambda: whole(run.folder) > 0, "a checkpoint")
    assert run.end() == 0, run.said()
    told = [e for s in "012" for e in events(run.folder, s)]
    assert {e["worker"] for e in told if e["kind"] == "done"} == {"0.0", "1.1", "2.0"}
    check_rounds(run.folder, {"0.0", "1.1", "2.0"})
    assert summary(run.folder)["steps_taken"] == 240


@pytest.mark.parametrize("balance", [pytest.param("batch", marks=pytest.mark.slow), "steps"])
def test_work_is_balanced_while_workers_are_lost_and_come(balance: str, start: Callable[..., Run]) -> None:
    """Slot 2 is 8 times as slow. Slot 0, whose state newcomers take, is killed, and then slot 1."""
    options = (
        "--balance",
        balance,
        "--strategy",
        "local-sgd",
        "--speeds",
        "1,1,8",
        "--pace",
        "0.01",
        "--batch",
        "16",
    )
    run = start(*ELASTIC, "--steps", "100000", *options, "--every", "8")
    run.await_round("0.0", "1.0", "2.0", number=3)
    for slot in (0, 1):
        run.kill(slot)
        last = run.told(f"{slot}.1", "round")[-1]["round"]
        run.await_round("2.0", f"{slot}.1", number=last + 4)
    assert run.end(signal.SIGINT) == 130, run.said()
    lines = (run.folder / "metrics.jsonl").read_text().splitlines()
    rounds = [row for row in map(json.loads, lines) if row["kind"] == "round"]
    steps = [row["step"] for row in rounds]
    # In order and none twice; who writes them may be killed between a round and its line.
    assert steps == sorted(set(steps))
    assert all(step % 8 == 0 for step in steps)
    assert len(steps) >= steps[-1] // 8 - 2
    whole = [row for row in rounds if sum(row["weights"]) == 8 * 16 * len(row["members"])]
    assert len(whole) > len(rounds) - 6  # but where a worker was lost in it
    for members in (["0.0", "1.0", "2.0"], ["1.0", "2.0", "0.1"], ["2.0", "0.1", "1.1"]):
        row = [row for row in whole if row["members"] == members][-1]
        assert row["weights"][members.index("2.0")] < 8 * 16 * 0.8


def test_rounds_by_time_go_on_while_workers_are_lost_and_come(start: Callable[..., Run]) -> None:
    """Slot 2 is 4 times as slow; nobody waits for it, and none of its steps is counted twice."""
    options = ("--balance", "time", "--when", "time:0.5", "--strategy", "local-sgd", "--speeds", "1,1,4")
    run = start("--elastic", "local", "--steps", "100000", *options, "--pace", "0.02", "--batch", "16")
    run.await_round("0.0", "1.0", "2.0", number=3)
    for slot in (0, 1):
        run.kill(slot)
        last = run.told(f"{slot}.1", "round")[-1]["round"]
        run.await_round("2.0", f"{slot}.1", number=last + 4)
    assert run.end(signal.SIGINT) == 130, run.said()
    told = [row for slot in "012" for row in events(run.folder, slot) if row["kind"] == "round"]
    rounds = {row["round"]: row for row in told}
    assert [*sorted(rounds)] == [*range(1, max(rounds) + 1)]
    taken = 0
    for _, row in sorted(rounds.items()):
        taken += sum(row["done"])
        assert row["step"] == taken // 3  # those of an equal worker of three
    for members in (["0.0", "1.0", "2.0"], ["1.0", "2.0", "0.1"], ["2.0", "0.1", "1.1"]):
        row = [row for _, row in sorted(rounds.items()) if row["members"] == members][-2]
        assert row["done"][members.index("2.0")] < max(row["done"])


@pytest.mark.slow
def test_seventeen_workers(start: Callable[..., Run]) -> None:
    run = start(*ELASTIC, "--steps", "120", "--pace", "0.2", "--silence", "20", workers=17)
    run.await_round(*(f"{slot}.0" for slot in range(17)))
    for slot in (0, 16):
        run.kill(slot)
    assert run.end() == 0, run.said()
    check_rounds(run.folder, {"0.1", "16.1", *(f"{slot}.0" for slot in range(1, 16))})
    assert summary(run.folder)["rounds"] == 30


BUSY = """
import ctypes
import torch
from torch import nn
from swarmstep import Every, LocalSGD, Membership, Synchronizer

torch.manual_seed(0)
members = Membership.from_env(silence=2.0)
sync = Synchronizer(nn.Linear(4, 2), LocalSGD(when=Every(2)), members.join())
while sync.steps < 8:
    if sync.steps == 4 and sync.comm.rank == 1:
        ctypes.PyDLL(None).sleep(5)  # holds the interpreter lock
    sync.step(0.1)
sync.finish()
members.end()
members.conclude(lambda: print("epoch", sync.comm.epoch, *sync.comm.names, flush=True))
members.leave()
"""


@pytest.mark.slow
def test_a_worker_that_holds_its_interpreter_lock_stays_in_the_group(tmp_path: Path) -> None:
    (tmp_path / "busy.py").write_text(BUSY)
    command = [sys.executable, "-m", "swarmstep", "run", "--workers", "2", str(tmp_path / "busy.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert (done.returncode, done.stdout) == (0, "epoch 0 0.0 1.0\n"), done.stderr


OWN = """
import os
import signal
import time
import torch
from torch import nn
from swarmstep import Balance, Balanced, LocalSGD, Membership, MembershipChange, Synchronizer

torch.manual_seed(0)
members = Membership.from_env()
sync = Synchronizer(nn.Linear(4, 2), LocalSGD(when=Balanced(6)), members.join())
balance, end = Balance(sync), 10**9

def follow(events):
    global end
    for event in events:
        balance.update(event)
        if isinstance(event, MembershipChange) and "1.1" in event.names:
            end = event.step + 24

follow(sync.events())
while sync.steps < end:
    time.sleep(0.05 if members.name.startswith("1") else 0.005)
    if members.name == "1.0" and sync.steps >= 24:
        os.kill(os.getpid(), signal.SIGKILL)
    follow([sync.step(0.1), *sync.events()])
sync.finish()
members.end()
print(len(sync.comm.names), sync.steps - end, *sorted(zip(sync.comm.names, balance.shares)), flush=True)
members.leave()
"""


@pytest.mark.slow
def test_a_balance_of_ones_own_goes_on_when_a_worker_is_lost_and_another_comes(tmp_path: Path) -> None:
    """All know the same shares, of the right sum, the newcomer as well."""
    (tmp_path / "own.py").write_text(OWN)
    command = [sys.executable, "-m", "swarmstep", "run", "--workers", "3", str(tmp_path / "own.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert len(said) == 3
    assert said[0] == said[1] == said[2]
    size, rest, *_ = said[0].split()
    assert (size, rest) == ("3", "0")
    shares = [int(number) for number in re.findall(r", (\d+)\)", said[0])]
    assert sum(shares) == 18
