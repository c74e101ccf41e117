"""The command in a process of its own: doctor, a closed pipe, a terminal."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runs import weights
from swarmstep.cli import main

Refuse = Callable[..., str]


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


@pytest.mark.slow
def test_doctor(capsys: pytest.CaptureFixture[str], place: Path) -> None:
    assert main(["doctor", "--data", str(place)]) == 0
    out = capsys.readouterr().out
    assert f"mnist: no data in {place}" in out
    assert "two real processes over gloo: work" in out


def start(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "swarmstep", *arguments]
    return subprocess.Popen(command, text=True, stdin=subprocess.DEVNULL, **options)


@pytest.mark.slow
def test_output_that_nobody_reads(place: Path) -> None:
    """Whoever closes our output early ends the printing, not the run."""
    train = ("train", "digits", "--steps", "30", "--workers", "2", "--json")
    commands = {"listing": ("strategies",), "run": (*train, "--out", "run")}
    processes: list[subprocess.Popen[str]] = []
    for arguments in commands.values():
        read, write = os.pipe()
        os.close(read)
        processes.append(start(*arguments, stdout=write, stderr=write))
        os.close(write)
    closed = start(*train, "--out", "closed", preexec_fn=lambda: (os.close(1), os.close(2)))
    assert [process.wait(60) for process in (*processes, closed)] == [0, 0, 0]
    assert weights(place / "run") == weights(place / "closed")


@pytest.mark.usefixtures("forked")
def test_on_a_terminal(place: Path) -> None:
    master, slave = pty.openpty()
    train = ("train", "digits", "--steps", "30", "--workers", "2", "--json", "--out", "run")
    process = start(*train, stdout=subprocess.PIPE, stderr=slave, env={**os.environ, "TERM": "xterm"})
    os.close(slave)
    shown = b""
    with contextlib.suppress(OSError):  # what reading raises once the other end is closed
        while block := os.read(master, 4096):
            shown += block
    out = process.communicate(timeout=60)[0]
    os.close(master)
    assert json.loads(out)["rounds"] == 3
    assert b"30 of 30" in shown
    assert b"\x1b[?25h" in shown


@pytest.mark.usefixtures("forked")
def test_a_program_of_ones_own_and_json(place: Path) -> None:
    """What the processes print goes to standard error."""
    joins = "from swarmstep import Membership\nMembership.from_env().join()\n"
    (place / "own.py").write_text(f"import sys\nprint('from a worker', sys.argv[1:])\n{joins}")
    command = [sys.executable, "-m", "swarmstep", "run", "--workers", "1", "--json", "own.py", "--json", "x"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    found = json.loads(done.stdout)
    assert (done.returncode, found["exit_code"], found["arguments"]) == (0, 0, ["--json", "x"])
    assert "from a worker ['--json', 'x']" in done.stderr
