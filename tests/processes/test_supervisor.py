"""Slots that stay filled, whatever becomes of the workers in them."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from torch.distributed import TCPStore

from swarmstep.comm.process_groups import serve_store
from swarmstep.elastic import slot as slots
from swarmstep.elastic import stall, supervisor
from swarmstep.elastic.commit_vote import COMMIT, first_verdict
from swarmstep.elastic.keys import STOP
from swarmstep.elastic.supervisor import Supervisor, SupervisorOptions
from swarmstep.errors import CheckpointError
from swarmstep.launch.processes import Outcome, Place
from swarmstep.train.run_folder import RunFolder
from swarmstep.train.supervise import supervise

LIMIT = 60.0  # seconds; a hang, not a measurement

# Speaks the contract between supervisor and workers: says who it is, and ends as a file tells it to, or when the
# store says "stop" or "finish". With FATE=CODE in the environment it ends at once with that code; one that
# IN_NO_GROUP names leaves at "stop", as a `Membership` that has not joined does.
WORKER = """
import json, os, sys, time
from datetime import timedelta
from pathlib import Path
from torch.distributed import TCPStore

name, here = os.environ["SWARMSTEP_WORKER"], Path(__file__).parent
if "FATE" in os.environ:
    Path(os.environ["SWARMSTEP_SAYS"]).write_text(f"swarmstep: {name} had no luck\\n")
    sys.exit(int(os.environ["FATE"]))
host, port = os.environ["SWARMSTEP_STORE"].split(":")
store = TCPStore(host, int(port), is_master=False, timeout=timedelta(seconds=20))
found = {n: v for n, v in os.environ.items() if n.startswith("SWARMSTEP_") or n in ("RANK", "OMP_NUM_THREADS")}
(here / f"{name}.partial").write_text(json.dumps({"pid": os.getpid(), "arguments": sys.argv[1:], **found}))
os.replace(here / f"{name}.partial", here / f"{name}.json")
end = time.monotonic() + 60
while time.monotonic() < end:
    if (here / f"{name}.do").exists():
        code, _, said = (here / f"{name}.do").read_text().partition(" ")
        if said:
            Path(os.environ["SWARMSTEP_SAYS"]).write_text(f"swarmstep: {said}\\n")
        sys.exit(int(code))
    for word, code in (("stop", 0 if name in os.environ.get("IN_NO_GROUP", "") else 130), ("finish", 0)):
        if store.check([f"swarmstep/{word}"]):
            Path(os.environ["SWARMSTEP_SAYS"]).write_text(f"swarmstep: stopped at step 7\\n")
            sys.exit(code)
    time.sleep(0.005)
sys.exit(99)
"""


# A member of a group that has begun, which writes a checkpoint or does not, and is killed while all are to stop.
DIES = """
import os, signal
from pathlib import Path
from torch.distributed import TCPStore
from swarmstep.elastic.commit_vote import COMMIT, first_verdict

Path({made!r}).mkdir(parents=True)
host, port = os.environ["SWARMSTEP_STORE"].split(":")
store = TCPStore(host, int(port), is_master=False)
store.set("swarmstep/epoch/0/members", "[]")
store.set(first_verdict("swarmstep/epoch/0/vote"), COMMIT)
os.kill(int(os.environ["SUPERVISOR"]), signal.SIGINT)
store.wait([{store!r}])
os.kill(os.getpid(), signal.SIGKILL)
"""


class Watched:
    """A supervisor, what it has told its listener, and its workers' files."""

    def __init__(self, folder: Path, workers: int, stack: ExitStack, **options: Any) -> None:
        (folder / "worker.py").write_text(WORKER)
        self.folder = folder
        self.events: list[dict[str, Any]] = []
        chosen = SupervisorOptions(program=str(folder / "worker.py"), listen=self.events.append, **options)
        self.supervisor = stack.enter_context(Supervisor(["train", "mnist"], workers, folder, Place(), chosen))

    def until(self, true: Callable[[], Any], interrupts: Sequence[int] = ()) -> Any:
        """Let the supervisor do its work until something is true."""
        deadline = time.monotonic() + LIMIT
        while not (found := true()):
            assert time.monotonic() < deadline, (self.events, "it did not come to that")
            self.supervisor.attend(0.05, interrupts)
        return found

    def ready(self, *names: str) -> list[dict[str, Any]]:
        """Wait until these workers are there; return what each has found."""
        files = [self.folder / f"{name}.json" for name in names]
        self.until(lambda: all(file.exists() for file in files))
        return [json.loads(file.read_text()) for file in files]

    def do(self, name: str, what: str) -> None:
        (self.folder / f"{name}.words").write_text(what)
        os.replace(self.folder / f"{name}.words", self.folder / f"{name}.do")

    def stop(self, name: str) -> None:
        """Have a worker stand still; the signal takes its way through the fork server."""
        pid = self.supervisor.pids[int(name.partition(".")[0])]
        self.supervisor.send_signal(name, signal.SIGSTOP)
        self.until(lambda: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")

    def end(self, interrupts: Sequence[int] = ()) -> Outcome:
        self.until(lambda: self.supervisor.outcome, interrupts)
        assert self.supervisor.outcome
        return self.supervisor.outcome

    def store(self) -> TCPStore:
        (about, *_) = (json.loads(file.read_text()) for file in self.folder.glob("*.json"))
        host, port = about["SWARMSTEP_STORE"].split(":")
        return TCPStore(host, int(port), is_master=False)

    def ended(self) -> list[tuple[str, int, bool]]:
        return [(e["worker"], e["code"], e["lost"]) for e in self.events if e["kind"] == "ended"]


Watch = Callable[..., Watched]


@pytest.fixture
def watch(tmp_path: Path, forked: None) -> Iterator[Watch]:
    with ExitStack() as stack:

        def watch(workers: int, **options: Any) -> Watched:
            return Watched(tmp_path, workers, stack, **options)

        yield watch


def test_workers_know_who_they_are_and_are_replaced(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")  # of a group that has nothing to do with this one
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    run = watch(2)
    for slot, about in enumerate(run.ready("0.0", "1.0")):
        assert about["SWARMSTEP_WORKER"] == f"{slot}.0"
        assert about["SWARMSTEP_WORKERS"] == "2"
        assert about["SWARMSTEP_FOLDER"] == str(run.folder)
        assert about["OMP_NUM_THREADS"] == "1"
        assert about["arguments"] == ["train", "mnist"]
        assert "RANK" not in about
        assert run.supervisor.pids[slot] == about["pid"]
    os.kill(run.supervisor.pids[1], signal.SIGKILL)
    run.ready("1.1")
    assert run.supervisor.living == {0: "0.0", 1: "1.1"}
    assert run.store().get("swarmstep/dead/1.0") == b"1"
    assert not run.store().check(["swarmstep/dead/0.0"])
    run.do("0.0", "5 lost the others")
    run.ready("0.1")
    assert run.ended() == [("1.0", -9, True), ("0.0", 5, True)]
    assert [e["error"] for e in run.events if e["kind"] == "ended"] == [
        "worker 1.0 was ended by SIGKILL", "lost the others",
    ]  # fmt: skip
    for name in ("0.1", "1.1"):
        run.do(name, "0")
    assert run.end() == Outcome(0, "")
    assert sorted(run.ended()[2:]) == [("0.1", 0, False), ("1.1", 0, False)]


def test_nobody_is_replaced_after_the_first_is_done(watch: Watch) -> None:
    run = watch(3)
    run.ready("0.0", "1.0", "2.0")
    run.do("1.0", "0")
    run.until(lambda: 1 not in run.supervisor.living)
    assert run.supervisor.outcome is None
    assert not run.store().check([STOP])  # else the others would take it for a request
    assert run.supervisor.send_signal("0.0", signal.SIGKILL)
    run.do("2.0", "3 data are gone")
    assert run.end() == Outcome(0, "")
    assert {name for name, _, lost in run.ended() if not lost} == {"0.0", "1.0", "2.0"}
    assert not run.supervisor.send_signal("0.0", signal.SIGKILL)
    assert not run.supervisor.send_signal("7.0", signal.SIGKILL)


def test_who_does_not_end_is_ended(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "LAST_WAIT", 0.2)
    run = watch(2)
    run.ready("0.0", "1.0")
    run.stop("0.0")
    run.do("1.0", "0")
    assert run.end() == Outcome(0, "")
    assert run.supervisor.living == {0: "0.0"}  # until the end of the block


WAITS = """
import time
from swarmstep import waiting

waiting.LONG = waiting.PERIOD = 0.02

def wait_in_vain():
    with waiting.Wait("a friend"):
        time.sleep(60)

wait_in_vain()
"""


def test_what_a_worker_waits_for_is_told_and_where_it_is(
    watch: Watch, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("FIRST", 0.1), ("PERIOD", 0.02), ("WRITING", 0.1)):
        monkeypatch.setattr(stall, name, value)
    run = watch(1)
    (run.folder / "worker.py").write_text(WAITS)
    stacks = run.folder / "stacks.txt"
    run.until(lambda: stacks.exists() and "in wait_in_vain" in stacks.read_text())
    assert "swarmstep: worker 0.0 waits for a friend (" in capfd.readouterr().err
    assert run.supervisor.living == {0: "0.0"}  # it was asked, not ended


@pytest.mark.parametrize("code", [1, 2, 3, 4, 6])
def test_errors_that_a_restart_would_repeat_end_the_run(code: int, watch: Watch) -> None:
    run = watch(2)
    run.ready("0.0", "1.0")
    run.do("1.0", f"{code} that is wrong")
    assert run.end() == Outcome(code, "that is wrong")


def test_a_worker_that_says_nothing(watch: Watch) -> None:
    run = watch(1)
    run.ready("0.0")
    run.do("0.0", "2")
    assert run.end() == Outcome(2, "worker 0.0 ended with code 2 and said nothing")


def test_slots_that_die_again_and_again(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "PAUSE", 0.001)
    monkeypatch.setenv("FATE", "5")
    run = watch(2)
    outcome = run.end()
    assert outcome.code == 5
    assert outcome.message.startswith("each of 2 workers died 5 times in a row soon after its start; the last: ")
    assert outcome.message.endswith(" had no luck")
    assert {name for name, *_ in run.ended()} >= {f"{slot}.{k}" for slot in (0, 1) for k in range(5)}


def test_pauses_between_restarts_grow_and_end_with_success(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside a worker that lives on, the restarts of one that does not become rare, but never end."""
    monkeypatch.setattr(slots, "PAUSE", 0.01)
    monkeypatch.setattr(slots, "LONGEST_PAUSE", 0.04)
    run = watch(2)
    run.ready("0.0")
    for k in range(7):
        run.ready(f"1.{k}")
        assert run.supervisor.send_signal(f"1.{k}", signal.SIGKILL)
    run.ready("1.7")
    times = {(e["kind"], e["worker"]): e["time"] for e in run.events}
    pauses = [times["started", f"1.{k + 1}"] - times["ended", f"1.{k}"] for k in range(7)]
    for pause, least in zip(pauses, [0.01, 0.02, 0.04, 0.04, 0.04, 0.04, 0.04], strict=True):
        assert pause >= 0.99 * least
    monkeypatch.setattr(slots, "HEALTHY", 0.0)
    monkeypatch.setattr(slots, "LONGEST_PAUSE", 1e6)  # if it were paused for, nobody would come
    run.supervisor.send_signal("1.7", signal.SIGKILL)
    run.ready("1.8")


def test_without_restarts_the_run_goes_on_with_the_others(watch: Watch) -> None:
    run = watch(2, restart=False)
    run.ready("0.0", "1.0")
    run.supervisor.send_signal("0.0", signal.SIGKILL)
    run.until(lambda: 0 not in run.supervisor.living)
    assert run.supervisor.attend(0.05) is None
    run.do("1.0", "5 alone")
    assert run.end() == Outcome(5, "no worker is left; the last: alone", killed=True)


def test_interrupts(watch: Watch) -> None:
    run = watch(2)
    run.ready("0.0", "1.0")
    assert run.end([signal.SIGINT]) == Outcome(130, "stopped at step 7")
    assert {code for _, code, _ in run.ended()} == {130}


UNBEGUN = "stopped on request before the training had begun; nothing was trained, and nothing is lost"


def test_an_interrupt_before_the_first_worker_has_started(watch: Watch) -> None:
    run = watch(2)
    assert run.end([signal.SIGINT]) == Outcome(130, UNBEGUN)
    assert run.events == []


def test_an_interrupt_before_the_workers_are_a_group(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IN_NO_GROUP", "0.0 1.0 2.0")
    run = watch(3)
    run.ready("0.0", "1.0", "2.0")
    run.supervisor.send_signal("2.0", signal.SIGKILL)
    assert run.end([signal.SIGINT]) == Outcome(130, UNBEGUN)
    assert {worker for worker, *_ in run.ended()} == {"0.0", "1.0", "2.0"}  # nobody was started again


def begin(store: TCPStore) -> None:
    """Say what the members of the first group say when it has begun."""
    store.set("swarmstep/epoch/0/members", '[["0.0", null]]')
    store.set(first_verdict("swarmstep/epoch/0/vote"), COMMIT)


def test_one_that_waits_to_join_does_not_end_the_others_of_a_run_that_stops(
    watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IN_NO_GROUP", "1.0")
    monkeypatch.setattr(supervisor, "LAST_WAIT", 0.0)  # if it did, they would have no time at all
    run = watch(2)
    run.ready("0.0", "1.0")
    begin(run.store())
    run.stop("0.0")
    run.until(lambda: run.ended() == [("1.0", 0, False)], [signal.SIGINT])
    assert run.supervisor.attend(0.05, [signal.SIGINT]) is None
    assert run.supervisor.living == {0: "0.0"}
    run.supervisor.send_signal("0.0", signal.SIGCONT)
    assert run.end([signal.SIGINT]) == Outcome(130, "stopped at step 7")


@pytest.mark.parametrize("lost", [True, False])
def test_a_run_that_stops_and_loses_its_members(lost: bool, watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has not stopped at a round; unless nobody was lost, as with a program that does not say it is over."""
    monkeypatch.setenv("IN_NO_GROUP", "1.0" if lost else "0.0 1.0")
    run = watch(2)
    run.ready("0.0", "1.0")
    begin(run.store())
    if lost:
        run.stop("0.0")
        run.until(lambda: run.ended(), [signal.SIGINT])
        run.supervisor.send_signal("0.0", signal.SIGKILL)
    why = "no worker is left; the last: worker 0.0 was ended by SIGKILL"
    expected = Outcome(5, why, killed=True) if lost else Outcome(130, "stopped on request")
    assert run.end([signal.SIGINT]) == expected


def test_a_run_that_is_done_when_it_is_to_stop(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IN_NO_GROUP", "0.0")
    run = watch(1)
    run.ready("0.0")
    begin(run.store())
    run.store().add("swarmstep/over", 1)
    assert run.end([signal.SIGINT]) == Outcome(0, "")


def test_the_second_interrupt_ends_all(watch: Watch) -> None:
    run = watch(1)
    run.ready("0.0")
    run.stop("0.0")
    run.supervisor.attend(0.0, [signal.SIGINT])
    assert run.store().check(["swarmstep/stop"])
    assert run.supervisor.outcome is None
    assert run.end([signal.SIGINT, signal.SIGTERM]).code == 130


def test_a_finish_that_all_are_told(watch: Watch) -> None:
    run = watch(2)
    run.ready("0.0", "1.0")
    run.supervisor.tell("finish")
    assert run.end() == Outcome(0, "")


@pytest.mark.usefixtures("forked", "handlers")
def test_an_interrupt_while_the_command_starts(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def serve() -> tuple[object, int]:
        signal.raise_signal(signal.SIGINT)
        return serve_store()

    assert supervise(["train", "digits"], 2, tmp_path / "run", Place(serve=serve)) == 130
    assert capfd.readouterr().err == f"swarmstep: {UNBEGUN}\n"
    RunFolder(tmp_path / "run").close()  # as new


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize("saved", [True, False])
def test_the_advice_to_resume_is_given_where_that_is_possible(
    saved: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SUPERVISOR", str(os.getpid()))
    here = tmp_path / "run" / "checkpoints"
    program = tmp_path / "dies.py"
    program.write_text(DIES.format(made=str(here / "step-00000016") if saved else str(here), store=STOP))
    assert supervise([], 1, tmp_path / "run", program=str(program)) == 5
    *_, last = capfd.readouterr().err.splitlines()
    assert last.startswith("swarmstep: no worker is left; the last: worker 0.0 was ended by SIGKILL")
    assert last.endswith("; go on from the last checkpoint with --resume DIR") is saved


@pytest.mark.usefixtures("forked")
def test_the_command_speaks_for_its_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["train", "nowhere", "--workers", "1"]
    assert supervise(arguments, 1, tmp_path / "run") == 2
    assert "swarmstep: " in (said := capfd.readouterr().err)
    assert "nowhere" in said
    RunFolder(tmp_path / "run").close()  # it is free again
    (tmp_path / "run" / "config.json").touch()
    with pytest.raises(CheckpointError, match=r"it holds config\.json"):
        supervise(arguments, 1, tmp_path / "run")
