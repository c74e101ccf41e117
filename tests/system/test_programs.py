"""Programs and paths: found as under plain Python, wherever the command is called."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from runs import weights
from swarmstep.cli import main
from swarmstep.launch.interpreter import module_command

PROGRAM = """
import json, sys
import helper
print(json.dumps([helper.N, sys.path[0], sys.argv[1:], __name__, __file__]), flush=True)
"""
TRAIN = ("train", "digits", "--workers", "2", "--steps", "8", "--every", "2")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("home", "there", "elsewhere"):
        (tmp_path / name).mkdir()
    (tmp_path / "there" / "helper.py").write_text("N = 1\n")
    (tmp_path / "there" / "prog.py").write_text(PROGRAM)
    (tmp_path / "elsewhere" / "linked.py").symlink_to(tmp_path / "there" / "prog.py")
    return tmp_path


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize("program", ["there/prog.py", "elsewhere/linked.py"])
def test_a_program_finds_its_neighbours_as_under_python(program: str) -> None:
    plain = subprocess.run([sys.executable, "-B", program, "--a", "b"], capture_output=True, text=True, check=True)
    command = [sys.executable, "-m", "swarmstep", "run", "--workers", "1", program, "--a", "b"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert json.loads(ran.stdout) == json.loads(plain.stdout)
    assert ran.returncode == 2
    assert "prog.py has ended, and none" in ran.stderr.replace("linked", "prog")


def test_the_working_folder_hides_no_module_from_our_processes(place: Path) -> None:
    (place / "argparse.py").write_text("raise SystemExit('the wrong argparse')\n")
    done = subprocess.run(module_command("json.tool"), input="[1]", capture_output=True, text=True, check=False)
    assert (done.returncode, json.loads(done.stdout), done.stderr) == (0, [1], "")


@pytest.mark.slow
@pytest.mark.parametrize("options", [("--backend", "gloo"), ("--elastic", "local")])
def test_a_run_in_a_folder_with_modules_like_others(options: tuple[str, ...], place: Path) -> None:
    for name in ("random", "statistics", "torch", "numpy", "queue", "selectors"):
        (place / f"{name}.py").write_text("raise SystemExit('the wrong one')\n")
    command = [str(Path(sys.executable).with_name("swarmstep")), *TRAIN, *options, "--no-files"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_home_folders(place: Path) -> None:
    assert main([*TRAIN, "--out=~/run", "--stop-at", "4"]) == 130
    assert (place / "home" / "run" / "config.json").exists()
    assert main(["train", "--resume=~/run"]) == 0
    assert not (place / "~").exists()


def test_a_run_that_was_moved_goes_on(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main([*TRAIN, "--out", "whole"]) == 0
    assert main([*TRAIN, "--out", "run", "--stop-at", "4"]) == 130
    os.rename("run", place / "elsewhere" / "moved")
    monkeypatch.chdir(place / "there")
    assert main(["train", "--resume", str(place / "elsewhere" / "moved")]) == 0
    assert weights(place / "elsewhere" / "moved") == weights(place / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "iso8859-9"])
def test_terminals_of_another_encoding(encoding: str, place: Path) -> None:
    """As under LC_ALL=C, or in Turkey."""
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": encoding}
    for words in (["--help"], ["strategies", "swarm"], ["cite", "swarm"], [*TRAIN, "--out", "run"], ["doctor"]):
        command = [sys.executable, "-m", "swarmstep", *words]
        done = subprocess.run(command, capture_output=True, env={**os.environ, **plain}, check=False)
        assert done.returncode == 0, (words, done.stderr)
        assert b"Error" not in done.stderr
