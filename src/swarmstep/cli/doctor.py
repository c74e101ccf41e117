"""What this machine can do, tried out rather than guessed."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from swarmstep import __version__
from swarmstep.workloads import mnist
from swarmstep.workloads.download import data_folder

TIME = 120.0  # seconds that a trial run may take

# Run by a process of its own: torch reads the variable once, and a group of this one might need another value.
MAKE_TLS = """
import os
os.environ["GLOO_DEVICE_TRANSPORT"] = "TCP_TLS"
from torch.distributed import ProcessGroupGloo
try:
    ProcessGroupGloo.create_device(hostname="127.0.0.1")
except RuntimeError as error:  # where there is TLS, it asks for certificates
    print(error)
"""


def examine(data: Path | None) -> int:
    """Print what is here and what works; return 0 if real processes on this machine can train."""
    print(f"swarmstep {__version__}, torch {torch.__version__}, Python {platform.python_version()}")
    print(f"{platform.platform()}, {os.cpu_count()} cores, {torch.cuda.device_count()} GPUs")
    folder = data_folder(data)
    for name, here in _data(folder).items():
        print(f"{name}: {'data in' if here else 'no data in'} {folder}")
    problem = _trial()
    print(f"two real processes over gloo: {problem or 'work'}")
    print(f"gloo with TLS: {'in' if _has_tls() else 'not in'} this build of torch (docs/security.md)")
    return 1 if problem else 0


def _data(folder: Path) -> dict[str, bool]:
    def raw(name: str) -> bool:
        path = folder / "MNIST" / "raw" / name
        return path.exists() or path.with_suffix("").exists()

    checks: dict[str, Callable[[], bool]] = {
        "mnist": lambda: all(raw(name) for name in mnist.MD5),
        "cifar10": lambda: (folder / "cifar-10-batches-bin" / "test_batch.bin").exists(),
    }
    return {name: check() for name, check in checks.items()}


def _has_tls() -> bool:
    """Return whether this build's gloo can encrypt."""
    command = [sys.executable, "-c", MAKE_TLS]
    try:
        made = subprocess.run(command, capture_output=True, text=True, timeout=TIME, check=False)
    except subprocess.TimeoutExpired:
        return False
    return made.returncode == 0 and "unsupported gloo device" not in made.stdout


def _trial() -> str | None:
    """Train for a few steps with two real processes; return what went wrong, if anything did."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "swarmstep", "train", "digits", "--workers", "2", "--backend", "gloo"]
        command += ["--steps", "8", "--every", "4", "--json", "--out", str(Path(folder) / "run")]
        environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=TIME, env=environment, check=False
            )
        except subprocess.TimeoutExpired:
            return f"did not end within {TIME:g} s"
        if done.returncode:
            return done.stderr.strip().split("\n")[-1]
        return None if json.loads(done.stdout.splitlines()[-1])["rounds"] == 2 else "wrong number of rounds"
