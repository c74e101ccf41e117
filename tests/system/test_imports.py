"""What importing does, in an interpreter of its own."""

from __future__ import annotations

import json
import subprocess
import sys


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
