"""No claim without evidence: the pages say what the result files say, and no figure stands there without one."""

from __future__ import annotations

import functools
import importlib
import json
import re
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special

from examples import few
from swarmstep.errors import DataError

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))
claims = importlib.import_module("claims")

PAGES = claims.read_pages()
README = PAGES["README.md"]
ALL = "\n".join(PAGES.values())
FILES = sorted(file.name for file in (ROOT / "benchmarks" / "results").glob("*.json"))

NUMBER = r"(?<!\w)(?:\d[\d.,]*|two|three|four|five|six|seven|eight|nine|ten|twenty|hundred|several|many)"
UNITS = r"[mnuµ]?s|secs?|seconds?|mins?|minutes?|h|hours?|days?|[kmgt]?i?b|bytes?|[kmg]bits?(?:/s)?|[kmg]bps|[kmg]"
FIGURE = re.compile(
    "|".join(
        (
            r"\d+\.\d+|(?<!\w)\.\d+|\d{1,3}(?:,\d{3})+(?!\d)|(?<!\w)\d+e[+-]?\d+\b",  # 0.98  .98  1,015,690  1e-3
            r"±|\+/?[-\u2212]|[½⅓⅔¼¾]|(?<![\w/])\d+/\d+(?![\w/])",  # 3 ± 1  3 +- 1  1/3
            rf"{NUMBER}\s*(?:%|per\s?cent\b)",  # 5 %  five percent
            rf"{NUMBER}[\s-]*(?:times|fold|[x\u00d7])(?!\w)|\borders? of magnitude\b",  # 3 times  tenfold  3x
            r"\b(?:twice|doubl(?:es?|ed)|tripl(?:es?|ed)|halv(?:es?|ed)|half\s+(?:of|the|as|a)|by\s+half)\b",
            r"\b(?:a|one|two|three)[\s-](?:third|quarter|fifth|tenth|hundredth)s?\b",
            rf"{NUMBER}[\s-]*(?:{UNITS}|[mb]illions?|thousand|(?:percentage\s)?points?)(?!\w)",  # 20 MB  two hours
            r"\baccurac(?:y|ies)\s*(?:of|is|was|=|:)?\s*\d+|\d\s+(?:test\s+)?accuracy\b",  # accuracy 98
        )
    ),
    re.IGNORECASE,
)
ALLOWED = {
    r"Python >= 3\.10\b": "what it needs, as pyproject.toml says",
    r"arXiv 2009\.03816\b": "the name of the paper",
    r"Apache-2\.0\b": "the name of the license",
}
# Blocks, fenced code, code, targets of links, addresses.
HIDDEN = (
    claims.BLOCK.pattern,
    r"(?m:^)```.*?(?m:^)```",
    r"`(?:[^`\n]|\n(?!\n))+`",
    r"\]\([^)\s]*\)",
    r"https?:\S+",
)


def unfounded(page: str) -> list[tuple[int, str]]:
    """Return line and wording of each figure that looks measured and stands neither in a block nor in code."""

    def hide(match: re.Match[str]) -> str:
        if FIGURE.fullmatch(match[0].strip("`")):
            return match[0]  # a figure does not become code by its backticks
        return re.sub(r"[^\n]", " ", match[0])

    for pattern in (*HIDDEN, *ALLOWED):
        page = re.sub(pattern, hide, page, flags=re.DOTALL)
    return [(page.count("\n", 0, m.start()) + 1, " ".join(m[0].split())) for m in FIGURE.finditer(page)]


def block(name: str) -> str:
    return next(match[3] for match in claims.BLOCK.finditer(ALL) if match[2] == name)


def replaced(old: str, new: str, count: int = -1) -> dict[str, str]:
    """Return the pages with a text replaced."""
    return {name: text.replace(old, new, count) for name, text in PAGES.items()}


def named(page: str) -> set[str]:
    """Return the result files that a page names by their path; `evidence-*.json` stands for all that match."""
    patterns = re.findall(r"benchmarks/results/([\w*.-]+\.json)", page)
    missing = [pattern for pattern in patterns if not any(fnmatch(file, pattern) for file in FILES)]
    assert not missing, "no such result file"
    return {file for file in FILES if any(fnmatch(file, pattern) for pattern in patterns)}


def test_the_pages_are_what_the_results_make_them() -> None:
    assert claims.stale(PAGES) == [], "run `make readme`"
    assert claims.rewritten(PAGES) == PAGES


@pytest.mark.parametrize("name", ["README.md", "docs/results.md"])  # choosing.md has commands of its own
def test_no_figure_of_a_page_stands_without_evidence(name: str) -> None:
    assert unfounded(PAGES[name]) == [], "make a block for it in benchmarks/claims.py, or leave it out"


def test_links_of_the_readme_work_on_the_page_of_the_package() -> None:
    text = claims.with_address(README, "https://example.org/repository")
    assert claims.with_address(text, "https://example.org/repository") == text
    assert claims.with_address(README, "") == README
    targets = re.findall(r"(!?)\[[^\]]*\]\(([^)\s]+)\)", text)
    assert ("", "https://example.org/repository/blob/HEAD/docs/quick-start.md") in targets
    assert ("!", "https://example.org/repository/raw/HEAD/docs/headline.svg") in targets
    assert all(target.startswith("https://") for _, target in targets)


@pytest.mark.parametrize(
    ("sentence", "figure"),
    [
        ("It is 3 times faster.", "3 times"),
        ("It is three\ntimes faster.", "three times"),
        ("A 10x speedup.", "10x"),
        ("Tenfold less; ten-fold less.", "Tenfold"),
        ("Twice as fast.", "Twice"),
        ("For half the traffic.", "half the"),
        ("With a third of the traffic.", "a third"),
        ("It saves an order of magnitude.", "order of magnitude"),
        ("It reaches 0.98 accuracy.", "0.98"),
        ("A loss of .05 remains.", ".05"),
        ("An accuracy of 98 after it.", "accuracy of 98"),
        ("98 test accuracy.", "8 test accuracy"),
        ("It loses 2 points.", "2 points"),
        ("It costs 5 % less.", "5 %"),
        ("It costs five percent less.", "five percent"),
        ("It saves 20 MB.", "20 MB"),
        ("It saves 20MiB a round.", "20MiB"),
        ("It needs 3 GB.", "3 GB"),
        ("Over 100 Mbit/s.", "100 Mbit/s"),
        ("A round takes 20 ms.", "20 ms"),
        ("A round takes 2 s.", "2 s"),
        ("Done in two minutes.", "two minutes"),
        ("It is 3 ± 1.", "±"),
        ("It is 3 +- 1.", "+-"),
        ("It takes 2/3 of it.", "2/3"),
        ("A model of 1,015,690 parameters.", "1,015,690"),
        ("A model of 10 M parameters.", "10 M"),
        ("An error of 1e-3.", "1e-3"),
        ("| swarm | 0.084 |", "0.084"),
        ("It reaches `0.98`.", "0.98"),
        ("It saves `20 MB`.", "20 MB"),
        ("# 5 % less", "5 %"),
        ("[0.98](benchmarks/results/none.json)", "0.98"),
        ("![saves 20 MB](figure.svg)", "20 MB"),
        ("`a` is 3 times `b`", "3 times"),
        ("An open ` and a paragraph.\n\nIt is 7 times faster ` here.", "7 times"),
    ],
)
def test_invented_claims_are_caught(sentence: str, figure: str) -> None:
    assert unfounded(sentence)[0][1] == figure
    where = README.index("## Two commands")
    page = f"{README[:where]}{sentence}\n\n{README[where:]}"
    before = README.count("\n", 0, where)
    assert (before + unfounded(sentence)[0][0], figure) in unfounded(page)


@pytest.mark.parametrize(
    "sentence",
    [
        "A round each 16 steps with 4 workers, n = 16 to 64, W workers and (W-1) P numbers.",
        "LeNet-5 on MNIST and CIFAR-10, 32 examples a step; 1 of 4 has bad labels, 3 of 8 the wrong sign.",
        "Weights in float32 or bfloat16, coded as int8; on each of 2 machines 2 processes.",
        "The first three rounds test; the four small files and the five concepts.",
        "Python >= 3.10, arXiv 2009.03816, Apache-2.0.",
        "`--delay 8` and `Options(delay=8)`; `--link 100mbit,5ms` and\n`--fault noise:1:0.1`.",
        "[a card](docs/0.98/card.md) and https://example.org/3.14",
        "```\npython train.py --lr 0.05  # takes 20 s\n```",
        "Nobody had a GPU; sometimes many workers, often one shard, always some doubt.",
    ],
)
def test_innocent_sentences_pass(sentence: str) -> None:
    assert unfounded(sentence) == []


def test_a_figure_within_a_block_is_its_functions_business_and_lines_are_counted() -> None:
    page = "# Title\n<!-- evidence: a -->\n0.98\n<!-- end evidence -->\n```\n20 ms\n```\nIt is 3 times as fast.\n"
    assert unfounded(page) == [(8, "3 times")]


def test_what_is_allowed_is_said_and_true() -> None:
    for pattern in ALLOWED:
        assert re.search(pattern, ALL), pattern
    project = (ROOT / "pyproject.toml").read_text()
    assert 'requires-python = ">=3.10"' in project
    assert 'license = "Apache-2.0"' in project


def test_every_named_result_file_exists_and_says_how_it_was_made() -> None:
    assert named(ALL)
    for file in named(ALL):
        ways = ("python ", ".venv/bin/", "sudo .venv/bin/", "swarmstep ", "benchmarks/")
        assert claims.command(file).startswith(ways), file
    for file in claims.COMMANDS:
        content = claims.read(file)
        assert not isinstance(content, dict) or "command" not in content, f"{file} says it itself now"


@pytest.mark.parametrize("name", claims.BLOCKS)
def test_each_block_names_the_files_it_is_made_from(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    used: set[str] = set()
    read = claims.read
    monkeypatch.setattr(claims, "read", lambda file: used.add(file) or read(file))
    claims.BLOCKS[name]()
    assert named(block(name)), "a block without a result file"
    assert used <= named(block(name))


def test_every_result_file_is_used() -> None:
    pages = [ROOT / "README.md", ROOT / "benchmarks" / "LOG.md", *(ROOT / "docs").rglob("*.md")]
    patterns = {name for page in pages for name in re.findall(r"[\w*.-]*\w[\w*.-]*\.json", page.read_text())}
    assert [file for file in FILES if not any(fnmatch(file, pattern) for pattern in patterns)] == []


def test_figures_by_another_way() -> None:
    runs = [c for c in claims.read("evidence-conditions.json")["cells"] if c["purpose"] == "run"]
    bad = [c for c in runs if c["config"]["shards"] == "bad-labels:1"]
    for method in ("swarm", "local-sgd"):
        ends = np.array([c["points"][-1][6] for c in bad if c["method"] == method])
        half = 4.3026527 * ends.std(ddof=1) / 3**0.5  # Student's t, 2 degrees of freedom
        middle, half = special.logit(ends.mean()), half / (ends.mean() * (1 - ends.mean()))
        low, high = special.expit([middle - half, middle + half])
        assert f"{ends.mean():.3f} ({low:.3f} to {high:.3f})" in block("conditions")
    link = claims.read("evidence-link.json")
    target = link["about"]["target"]["accuracy"]
    for method in ("ddp", "local-sgd"):
        ends = [c for c in link["cells"] if (c["purpose"], c["method"]) == ("run", method)]
        seconds = [next(p[1] for p in c["points"] if p[6] >= target) for c in ends]
        mean, factor = np.mean(seconds), np.exp(4.3026527 * np.std(seconds, ddof=1) / 3**0.5 / np.mean(seconds))
        assert f"| {mean:.1f} ({mean / factor:.1f} to {mean * factor:.1f}) |" in block("headline")
    cells = json.loads((ROOT / "benchmarks/results/codec-mnist-local-sgd.json").read_text())["cells"]
    plain, coded = ([c["test_accuracy"] for c in cells if c["variant"] == v] for v in ("", "--codec int8"))
    difference = 100 * (np.array(coded) - np.array(plain))
    half = 2.7764451 * difference.std(ddof=1) / 5**0.5  # Student's t, 4 degrees of freedom
    assert f"{difference.mean():+.2f} +- {half:.2f} points (5 seeds" in block("rounds")
    rows = {
        row["name"]: row
        for row in json.loads((ROOT / "benchmarks/results/bench-overlap.json").read_text())["rows"]
    }
    alone = rows["no communication"]["median_seconds"]
    speeds = [alone / rows[name]["median_seconds"] for name in ("ddp", "n=16 int8", "n=16 int8, delay 8")]
    assert [f"{speed:.2f}" for speed in speeds] == ["0.17", "0.92", "0.99"]
    assert all(f" | {speed:.2f} |" in block("overlap") for speed in speeds)


def tripled(content: Any) -> Any:
    """Return results with everything measured three times as large."""
    if isinstance(content, list):
        return [tripled(item) for item in content]
    if not isinstance(content, dict):
        return content
    measured = ("test_loss", "test_accuracy", "bytes_sent_per_worker", "ratio")
    measured += ("recover_seconds_median", "throughput_ratio")
    if "points" in content:
        points = [[step, *(x and 3 * x for x in rest)] for step, *rest in content["points"]]
        content = {**content, "points": points}
    return {
        key: 3 * value if key in measured and value is not None else tripled(value)
        for key, value in content.items()
    }


@pytest.mark.parametrize("name", ["in-short", "demo", "muon", "overlap", "rounds", "paper", "conditions"])
def test_other_results_make_other_figures(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for file in named(block(name)):
        (tmp_path / file).write_text(json.dumps(tripled(claims.read(file))))
    monkeypatch.setattr(claims, "RESULTS", tmp_path)
    monkeypatch.setattr(claims, "claim", lambda sentence, holds: sentence)  # its own test is below
    before, after = (re.findall(r"\d+\.\d+", text) for text in (block(name), claims.BLOCKS[name]()))
    assert len(before) == len(after)
    same = [old for old, new in zip(before, after, strict=True) if old == new]
    assert [figure for figure in same if float(figure)] == [], "a figure that does not come from the results"


def test_sentences_hold_only_while_the_results_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = claims.read("evidence-conditions.json")
    for cell in content["cells"]:
        if cell["method"] == "swarm":
            for point in cell["points"]:
                point[6] = 0.5  # the test accuracy
    (tmp_path / "evidence-conditions.json").write_text(json.dumps(content))
    monkeypatch.setattr(claims, "RESULTS", tmp_path)
    with pytest.raises(DataError, match="no longer say: 'The informed swarm has the highest mean"):
        claims.conditions()


def test_the_figure_is_what_the_results_make_it() -> None:
    headline = importlib.import_module("headline")
    assert headline.FIGURE.read_text() == headline.svg()


@few
@given(name=st.sampled_from(sorted(claims.BLOCKS)), text=st.text().filter(lambda text: "<!--" not in text))
def test_whatever_stands_in_a_block_is_replaced_and_nothing_else(name: str, text: str) -> None:
    pages = replaced(block(name), text)
    made = {each: functools.partial(from_the_top, each) for each in claims.BLOCKS}
    with patch.dict(claims.BLOCKS, made):  # what they make is held above
        assert claims.rewritten(pages) == PAGES
        assert [what for _, what in claims.stale(pages)] == ([] if text == block(name) else [f"block {name}"])


def from_the_top(name: str) -> str:
    """Return a block of the pages as its function makes it."""
    return block(name).strip("\n").replace("](../", "](")


@pytest.mark.parametrize(
    "pages",
    [
        replaced("<!-- end evidence -->", "", 1),
        replaced("<!-- evidence: rounds -->\n", ""),
        replaced("evidence: rounds", "evidence: invented"),
        replaced("evidence: rounds", "evidence: overlap"),
        {
            **PAGES,
            "README.md": README + "<!-- evidence: overlap -->\nIt is 3 times faster.\n<!-- end evidence -->\n",
        },
        {**PAGES, "README.md": README + "<!--evidence: overlap -->\nIt is 3 times faster.\n"},
    ],
)
def test_blocks_that_nothing_makes_are_refused(pages: dict[str, str]) -> None:
    with pytest.raises(DataError, match=r"expected one block each, ended, for "):
        claims.rewritten(pages)


def test_missing_results_are_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "RESULTS", tmp_path)
    with pytest.raises(DataError, match=r"^benchmarks/results/bench-overlap.json: .*expected results.*"):
        claims.overlap()
    for file in FILES:
        (tmp_path / file).write_bytes((ROOT / "benchmarks" / "results" / file).read_bytes())
    (tmp_path / "bench-overlap.json").write_text('{"rows": [], "machine": {"cpus": 2}}')
    with pytest.raises(DataError, match=r"lacks 'no communication'"):
        claims.rewritten(PAGES)
    (tmp_path / "bench-new.json").write_text('{"rows": []}')
    with pytest.raises(DataError, match=r"bench-new.json has no `command`"):
        claims.command("bench-new.json")
    (tmp_path / "evidence-new.json").write_text('{"about": {"command": "swarmstep compare mnist"}, "cells": []}')
    assert claims.command("evidence-new.json") == "swarmstep compare mnist"


def test_the_command_checks_and_repairs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def write(pages: dict[str, str]) -> None:
        for name, text in pages.items():
            (tmp_path / name).write_text(text)

    (tmp_path / "docs").mkdir()
    (tmp_path / "pyproject.toml").write_text("")
    monkeypatch.setattr(claims, "ROOT", tmp_path)
    tampered = replaced("| 0.17 |", "| 0.07 |")
    write(tampered)
    assert claims.main(["--check"]) == 1
    said = "docs/results.md, block overlap: "
    assert capsys.readouterr().out == f"{said}differs from the results; run `make readme`\n"
    assert claims.read_pages() == tampered
    assert claims.main([]) == 0
    assert capsys.readouterr().out == f"{said}rewritten\n"
    assert claims.read_pages() == PAGES
    assert claims.main(["--check"]) == 0
    assert capsys.readouterr().out == ""
    (tmp_path / "pyproject.toml").write_text('[project.urls]\nRepository = "https://example.org/it/"\n')
    assert claims.main(["--check"]) == 1
    assert capsys.readouterr().out.startswith("README.md, ")
    write(replaced("evidence: rounds", "evidence: invented"))
    assert claims.main(["--check"]) == 1
    assert capsys.readouterr().out.count("\n") == 1
