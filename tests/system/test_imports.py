"""What importing does, in an interpreter of its own."""

from __future__ import annotations

import json
import subprocess
import sys

from swarmstep.cli.app import COMMANDS
from swarmstep.microbench.benchmarks import BENCHMARKS


def test_importing_starts_nothing_and_brings_no_extras() -> None:
    code = "import json, sys, threading, swarmstep\nprint(json.dumps([[*sys.modules], threading.active_count()]))"
    command = [sys.executable, "-W", "error", "-c", code]
    modules, threads = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    unwanted = (
        "torch",
        "numpy",
        "rich",
        "typer",
        "safetensors",
        "swarmstep.train",
        "swarmstep.cli",
        "sklearn",
        "scipy",
        "pytest",
    )
    assert not [m for m in modules if m.startswith(unwanted)]
    assert threads == 1


def test_what_needs_no_torch_imports_none() -> None:
    """Help of all commands, the version, the table of the methods, and their papers."""
    code = "import sys\nfrom swarmstep.cli import main\nfor line in sys.argv[1:]:\n"
    code += "    assert main(line.split()) == 0\n    assert not {'torch', 'numpy'} & {*sys.modules}, line"
    pages = [f"{path} --help" for path in ("", *COMMANDS, *(f"bench {name}" for name in BENCHMARKS))]
    lines = ["--version", "strategies", "strategies --json", "cite diloco", "cite diloco --json", *pages]
    subprocess.run([sys.executable, "-c", code, *lines], check=True, stdout=subprocess.DEVNULL)
