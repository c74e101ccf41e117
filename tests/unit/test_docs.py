"""The documentation: every block is run, or says why not; every link leads somewhere; no merge was left half done.

Python here, shell commands in tests/system/test_docs.py, which takes minutes; all calls of `swarmstep` are parsed
by the command itself in test_command_line.py.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from pages import PAGES, ROOT, blocks, given, name_of, runnable
from swarmstep import Group, simulate

LANGUAGES = {"", "python", "sh", "diff", "yaml", "toml", "json", "{code-cell}"}
MARK = "say ```sh, and `<!-- not run: REASON -->` in the line before where it cannot be run: "
COMMAND = re.compile(
    r"^(?:\$ )?(?:sudo |\.venv/bin/|python |make |pip |torchrun |swarmstep |export \w)", re.MULTILINE
)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_are_marked_as_such_so_that_they_are_run(page: Path) -> None:
    for block in blocks(page):
        assert block.language in LANGUAGES
        # What a command prints may name the next one.
        assert block.language or not COMMAND.match(block.text), MARK + block.text


@pytest.mark.parametrize("page", runnable("python"), ids=name_of)
def test_the_python_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def run(comm: Group) -> None:
        names = given(page, comm)
        for block in blocks(page):
            if block.language == "python" and not block.reason:
                exec(compile(block.text, name_of(page), "exec"), names)

    simulate(run, workers=2)


@pytest.mark.parametrize("side", ["-", "+"])
def test_the_loop_of_the_readme_runs_before_and_after(side: str, capsys: pytest.CaptureFixture[str]) -> None:
    (diff,) = (block.text for block in blocks(ROOT / "README.md") if block.language == "diff")
    lines = [line[1:] for line in diff.splitlines() if line[:1] in ("", " ", side)]
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile("\n".join(lines), "README.md", "exec"), names)
    accuracies = [float(number) for number in re.findall(r"\d\.\d+", capsys.readouterr().out)]
    assert len(accuracies) == (1 if side == "-" else 4)
    assert len(set(accuracies)) == 1
    assert accuracies[0] > 0.95


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_files(page: Path) -> None:
    text = re.sub(r"^```.*?^```$|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", text):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_mark_of_a_merge_has_stayed(page: Path) -> None:
    assert not re.findall(r"^(?:<{7} .*|>{7} .*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
