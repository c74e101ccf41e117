"""What processes wait for, and when their supervisor says so."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest

from swarmstep import waiting
from swarmstep.elastic.stall import FIRST, StallWatch
from swarmstep.waiting import Wait

NEVER = float("inf")


def test_open_waits_are_those_that_have_begun_and_not_ended_the_whole_before_its_parts() -> None:
    before = time.monotonic()
    with Wait("the whole") as whole, Wait("a part"):
        whole.what = "all"
        assert [wait.what for wait in waiting.waits(0.0)] == ["all", "a part"]
        assert all(before <= wait.since <= time.monotonic() for wait in waiting.waits(0.0))
        assert waiting.waits(3600.0) == []
    with pytest.raises(KeyError), Wait("what fails"):
        raise KeyError
    assert waiting.waits(0.0) == []


def test_no_file_and_half_a_file_say_nothing(tmp_path: Path) -> None:
    assert waiting.reported(tmp_path / "0.0.waits") == []
    (tmp_path / "0.0.waits").write_text('[["the vo')
    assert waiting.reported(tmp_path / "0.0.waits") == []


class Watched:
    """Two workers, of which the second waits for as long as the test says."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.signals: list[tuple[str, int]] = []
        self.watch = StallWatch(folder, folder, lambda name, number: self.signals.append((name, number)))

    def look(self, waited: float, over: float = NEVER) -> list[str]:
        """Let it look; return whom it asks where they are."""
        (self.folder / "1.3.waits").write_text(json.dumps([["the vote", time.monotonic() - waited]]))
        self.watch._next, self.signals[:] = 0.0, []
        self.watch.look({0: "0.0", 1: "1.3"}, over)
        assert {number for _, number in self.signals} <= {signal.SIGUSR2}
        return [name for name, _ in self.signals]


def test_a_long_wait_is_told_once_and_again_when_it_is_twice_as_long(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Watched(tmp_path)
    assert run.look(FIRST - 5.0) == []
    assert capsys.readouterr().err == ""
    assert run.look(FIRST + 5.0) == ["0.0", "1.3"]
    said = capsys.readouterr().err
    waits = f"the vote ({FIRST + 5:.0f} s)"
    assert said == f"swarmstep: worker 0.0 waits for nobody\nswarmstep: worker 1.3 waits for {waits}\n"
    assert run.look(2 * FIRST + 5.0) == []
    assert run.look(2 * FIRST + 15.0) == ["0.0", "1.3"]
    run.watch.requested = True
    assert run.look(0.0) == ["0.0", "1.3"]
    assert run.look(0.0) == []


def test_workers_that_do_not_end_though_the_run_is_over_are_told(tmp_path: Path) -> None:
    run, now = Watched(tmp_path), time.monotonic()
    assert run.look(0.0, over=now - FIRST + 5.0) == []
    assert run.look(0.0, over=now - FIRST - 5.0) == ["0.0", "1.3"]


def test_what_all_have_written_is_added_to_one_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Watched(tmp_path)
    for text in ("in the vote", "in the vote still"):
        run.watch.requested = True
        run.look(0.0)
        (tmp_path / "0.0.stacks").write_text(text)
        run.watch._written = 0.0
        run.look(0.0)
        assert (tmp_path / "0.0.stacks").read_text() == ""
    assert (tmp_path / "stacks.txt").read_text().count("worker 0.0\nin the vote") == 2
    assert str(tmp_path / "stacks.txt") in capsys.readouterr().err
