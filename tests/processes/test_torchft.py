"""Groups that a torchft lighthouse names members of: killed workers, the last one, and no lighthouse at all."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import pytest

from forking import Popen
from swarmstep.cli import main
from swarmstep.comm.process_groups import serve_store
from swarmstep.comm.store import TcpAddress
from swarmstep.elastic import supervisor
from swarmstep.elastic.supervisor import Supervisor, SupervisorOptions
from swarmstep.elastic.torchft import ADDRESS, Lighthouse, LighthouseMembership, serve_lighthouse
from swarmstep.errors import CommError, UsageError
from swarmstep.launch.fork_server import ForkServer
from swarmstep.launch.processes import Outcome, Place
from swarmstep.train.run_folder import RunFolder

LIMIT = 60.0  # seconds; a hang, not a measurement
SILENCE = 2.0

LIGHTHOUSE = """
import sys, time
from torchft.coordination import LighthouseServer
server = LighthouseServer(bind=f"127.0.0.1:{sys.argv[1]}", min_replicas=1, heartbeat_timeout_ms=1000)
print("ready", flush=True)
time.sleep(120)
"""


@pytest.fixture
def torchft() -> None:
    pytest.importorskip("torchft", reason="torchft is not installed: pip install torchft")


@pytest.fixture(autouse=True)
def no_lighthouse_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ADDRESS, raising=False)


def until(true: Callable[[], Any], act: Callable[[], object] = lambda: None) -> Any:
    deadline = time.monotonic() + LIMIT
    while not (found := true()):
        assert time.monotonic() < deadline, "it did not come to that"
        act()
    return found


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def test_not_installed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "torchft.coordination", None)
    with pytest.raises(UsageError, match="pip install torchft, or use --elastic local"), serve_lighthouse(1.0):
        pass
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "WORLD_SIZE", "SWARMSTEP_WORKER"):
        monkeypatch.delenv(name, raising=False)
    assert main(["train", "digits", "--workers", "2", "--elastic", "torchft", "--no-files"]) == 2
    said = capsys.readouterr().err.strip()
    assert "expected torchft to be installed" in said
    assert len(said.splitlines()) == 1


@pytest.mark.usefixtures("torchft")
def test_who_has_asked_is_named_once_nobody_alive_is_missing() -> None:
    with serve_lighthouse(LIMIT) as address:
        first, second = Lighthouse(address, "0.0"), Lighthouse(address, "1.0")
        try:
            assert second.ask(SILENCE) == {"1.0"}
            assert first.ask(SILENCE) == set()  # 1.0 lives and has not asked
            assert second.ask(SILENCE) == {"0.0", "1.0"}
            second.stop()
            assert until(lambda: first.ask(SILENCE)) == {"0.0"}
        finally:
            first.stop()
            second.stop()


@pytest.mark.usefixtures("torchft")
def test_one_that_runs_elsewhere_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ADDRESS, "http://elsewhere:29510")
    with serve_lighthouse(LIMIT) as address:
        assert address == "http://elsewhere:29510"


@pytest.mark.usefixtures("torchft")
def test_other_machines_need_one_that_they_reach() -> None:
    with pytest.raises(UsageError, match="start one"), serve_lighthouse(LIMIT, alone=False):
        pass


@pytest.mark.usefixtures("torchft")
@pytest.mark.parametrize("form", ["http://127.0.0.1:{}", "127.0.0.1:{}"])
def test_none_at_the_address(form: str) -> None:
    store, port = serve_store()
    address = form.format(free_port())
    with pytest.raises(CommError) as caught:
        LighthouseMembership(TcpAddress("127.0.0.1", port), "0.0", address)
    said = str(caught.value)
    assert f"worker 0.0: the lighthouse at {address} cannot be reached" in said
    assert ("Connection refused" if "http" in address else "scheme is missing") in said
    assert len(said.splitlines()) == 1
    del store


@pytest.fixture(scope="module")
def fork_server() -> Iterator[ForkServer]:
    """One for all tests here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess, "Popen", Popen)
        with ForkServer(dict(os.environ)) as fork_server:
            yield fork_server


class Run:
    """Three workers of the real command, and what they wrote down."""

    def __init__(self, folder: Path, lighthouse: str, stack: ExitStack, **manner: Any) -> None:
        self.folder, self.ends = folder, list[dict[str, Any]]()
        options = "--strategy local-sgd --workers 3 --every 4 --pace 0.01 --elastic torchft --backend gloo"
        options += f" --silence {SILENCE} --steps 100000 --out {folder}"
        arguments = ["train", "digits", *options.split()]
        stack.callback(RunFolder(folder).close)
        place = Place(environment={ADDRESS: lighthouse})
        how = SupervisorOptions(
            listen=lambda event: self.ends.append(event) if event["kind"] == "ended" else None, **manner
        )
        self.supervisor = stack.enter_context(Supervisor(arguments, 3, folder, place, how))

    def rows(self, kind: str) -> list[dict[str, Any]]:
        """Return the events of a kind, without a last line that is being written."""
        files = self.folder.glob("events/*.jsonl")
        lines = [line for file in files for line in file.read_text().split("\n")[:-1]]
        return sorted((row for row in map(json.loads, lines) if row["kind"] == kind), key=lambda row: row["time"])

    def until(self, true: Callable[[], Any]) -> Any:
        return until(true, lambda: self.supervisor.attend(0.02))

    def landed(self, members: Sequence[str]) -> dict[str, Any]:
        """Wait for a round of exactly these members, all of whom have landed it; return the last one's event."""

        def found() -> list[dict[str, Any]]:
            rows = [row for row in self.rows("round") if set(row["members"]) == set(members)]
            return [r for r in rows if {o["worker"] for o in rows if o["round"] == r["round"]} == set(members)]

        return self.until(found)[-1]

    def kill(self, worker: str) -> float:
        assert self.supervisor.send_signal(worker, signal.SIGKILL)
        return time.time()

    def finish(self) -> Outcome:
        self.supervisor.tell("finish")
        return self.end()

    def end(self) -> Outcome:
        return self.until(lambda: self.supervisor.outcome)


@pytest.fixture
def start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fork_server: ForkServer, torchft: None
) -> Iterator[Callable[..., Run]]:
    monkeypatch.setattr(supervisor, "ForkServer", lambda environment: nullcontext(fork_server))
    with ExitStack() as stack:
        runs: list[Run] = []

        def start(lighthouse: str, **manner: Any) -> Run:
            runs.append(Run(tmp_path / "run", lighthouse, stack, **manner))
            return runs[-1]

        yield start
        left = {pid for run in runs for pid in run.supervisor.pids.values()}
        for pid in left:
            fork_server.send_signal(pid, signal.SIGKILL)
        until(lambda: not left, lambda: left.difference_update(pid for pid, _ in fork_server.ended(1.0)))


def test_killed_workers_cost_the_others_nothing_and_come_back(start: Callable[..., Run]) -> None:
    with serve_lighthouse(LIMIT) as address:
        run = start(address)
        run.landed(["0.0", "1.0", "2.0"])
        pids = run.supervisor.pids
        killed = run.kill("1.0")
        back = run.landed(["0.0", "2.0", "1.1"])
        assert back["members"][-1] == "1.1"  # whoever has the weights comes first
        assert {slot: pid for slot, pid in run.supervisor.pids.items() if slot != 1} == {0: pids[0], 2: pids[2]}
        run.kill("0.0")
        run.kill("1.1")
        assert run.landed(["2.0", "0.1", "1.2"])["members"][0] == "2.0"  # two newcomers outvote nobody
        assert run.finish().code == 0
    lost = {end["worker"]: end["code"] for end in run.ends if end["lost"]}
    assert lost == dict.fromkeys(["1.0", "0.0", "1.1"], -signal.SIGKILL)
    rounds = run.rows("round")
    for worker in ("2.0", "0.1", "1.2"):
        steps = [row["step"] for row in rounds if row["worker"] == worker]
        assert steps == list(range(steps[0], steps[-1] + 1, 4))  # each round, once
    assert {row["step"] for row in rounds if row["worker"] == "2.0"} == {row["step"] for row in rounds}
    newcomer = next(row for row in run.rows("joined") if row["worker"] == "1.1")
    assert newcomer["newcomer"]
    after = next(row for row in rounds if row["time"] > killed and "1.0" not in row["members"])
    print(f"the next round landed {after['time'] - killed:.2f} s after the kill")


def test_the_last_one_goes_on_alone(start: Callable[..., Run]) -> None:
    with serve_lighthouse(LIMIT) as address:
        run = start(address, restart=False)
        run.landed(["0.0", "1.0", "2.0"])
        run.kill("0.0")
        run.kill("2.0")
        run.landed(["1.0"])
        assert run.finish().code == 0
    steps = [row["step"] for row in run.rows("round") if row["worker"] == "1.0"]
    assert steps == list(range(4, steps[-1] + 1, 4))
    assert (run.folder / "summary.json").exists()


def test_a_lighthouse_that_ends_is_named_once_it_is_needed(start: Callable[..., Run]) -> None:
    port = free_port()
    with subprocess.Popen([sys.executable, "-c", LIGHTHOUSE, str(port)], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == b"ready\n"
            run = start(f"http://127.0.0.1:{port}", restart=False)
            run.landed(["0.0", "1.0", "2.0"])
        finally:
            process.kill()
    before = len(run.rows("round"))
    run.until(lambda: len(run.rows("round")) > before + 30)  # nobody misses it
    run.kill("0.0")
    outcome = run.end()
    assert outcome.code == CommError.exit_code
    assert f"the lighthouse at http://127.0.0.1:{port} cannot be reached" in outcome.message
    said = {end["worker"]: end["error"] for end in run.ends}
    assert all(f"no answer for {SILENCE:g} s" in said[worker] for worker in ("1.0", "2.0"))
