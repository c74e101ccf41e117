"""The documentation as readers meet it: its commands in a shell, its site in a browser."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from browser import Browser, needs_browser
from pages import ROOT, blocks, name_of, runnable

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
MAIN = (
    *("index", "quick-start", "tutorial", "how-to", "choosing", "results", "api", "log", "glossary", "faq"),
    *(
        "command-line",
        "architecture",
        "methods/README",
        "methods/swarm",
        "notebooks/simulate",
        "notebooks/compare",
    ),
)


@pytest.mark.parametrize("page", runnable("sh"), ids=name_of)
def test_the_commands_of_a_page_run(page: Path, tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    modules = {"python": "", "swarmstep": "-m swarmstep", "torchrun": "-m torch.distributed.run"}
    for tool, module in modules.items():  # 130: stopped on request
        (tools / tool).write_text(f'#!/bin/sh\n{sys.executable} {module} "$@" || [ $? = 130 ]\n')
        (tools / tool).chmod(0o755)
    script = ["set -eux"]
    for block in blocks(page):
        first = block.text.partition("\n")[0]
        if block.language == "python" and first.startswith("# ") and first.endswith(".py"):
            (tmp_path / first[2:]).write_text(block.text)
        if block.language == "sh" and not block.reason:
            script.append(block.text)
    paths = {"PATH": f"{tools}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        ["bash", "-c", "\n".join(script)],
        cwd=tmp_path,
        env={**os.environ, **paths},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-2000:]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site as `make docs` does."""
    pytest.importorskip("furo", reason="the extra docs is not installed")
    made = tmp_path_factory.mktemp("site")
    build = [
        sys.executable,
        "-m",
        "sphinx",
        "-q",
        "-W",
        "--keep-going",
        "-b",
        "html",
        str(ROOT / "docs"),
        str(made),
    ]
    ran = subprocess.run(build, capture_output=True, text=True, timeout=1800)
    assert ran.returncode == 0, ran.stderr
    return made


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    made = Browser(tmp_path_factory.mktemp("browser"))
    yield made
    made.close()


@needs_browser
@pytest.mark.parametrize("width", [390, 1400])
@pytest.mark.parametrize("page", MAIN)
def test_a_page_opens_without_an_error_and_fits(browser: Browser, site: Path, page: str, width: int) -> None:
    browser.open(site / f"{page}.html", width)
    assert browser.errors() == []
    assert len(browser.run("document.querySelector('article').textContent")) > 500
    assert browser.run("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0
    pictures = "[...document.querySelectorAll('article img')].map((image) => image.naturalWidth)"
    assert 0 not in browser.run(pictures)
