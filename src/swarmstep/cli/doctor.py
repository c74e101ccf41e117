"""The command ``swarmstep doctor``: what this machine can do, tried out rather than guessed."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from swarmstep import __version__
from swarmstep.cli.json_output import Json, print_json
from swarmstep.cli.options import path
from swarmstep.cli.text import examples
from swarmstep.launch.interpreter import code_command, module_command

app = typer.Typer(add_completion=False)

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


@app.command("doctor", epilog=examples("swarmstep doctor", "swarmstep doctor --json"))
def doctor(
    data: Annotated[
        str | None,
        typer.Option(metavar="DIR", parser=path, help="data folder (default: SWARMSTEP_DATA or ./data)"),
    ] = None,
    as_json: Json = False,
) -> int:
    """Show what this machine has, and try out whether real processes can train on it.

    Exits with 0 if they can, and with 1 otherwise.
    """
    found = examine(Path(data) if data else None)
    print_json(found) if as_json else print(_in_words(found))
    return 1 if found["problem"] else 0


def examine(data: Path | None) -> dict[str, Any]:
    """Return what is here and what works; "problem" is why real processes cannot train, or None."""
    import torch

    from swarmstep.workloads.download import data_folder

    folder = data_folder(data)
    return {
        "swarmstep": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "gpus": torch.cuda.device_count(),
        "data_folder": str(folder),
        "data": _data(folder),
        "problem": _trial(),
        "gloo_tls": _has_tls(),
    }


def _in_words(found: dict[str, Any]) -> str:
    lines = [
        f"swarmstep {found['swarmstep']}, torch {found['torch']}, Python {found['python']}",
        f"{found['platform']}, {found['cores']} cores, {found['gpus']} GPUs",
        *(
            f"{name}: {'data in' if here else 'no data in'} {found['data_folder']}"
            for name, here in found["data"].items()
        ),
        f"two real processes over gloo: {found['problem'] or 'work'}",
        f"gloo with TLS: {'in' if found['gloo_tls'] else 'not in'} this build of torch (docs/security.md)",
    ]
    return "\n".join(lines)


def _data(folder: Path) -> dict[str, bool]:
    """Return which data sets are in the folder."""
    from swarmstep.workloads import mnist

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
    command = code_command(MAKE_TLS)
    try:
        made = subprocess.run(command, capture_output=True, text=True, timeout=TIME, check=False)
    except subprocess.TimeoutExpired:
        return False
    return made.returncode == 0 and "unsupported gloo device" not in made.stdout


def _trial() -> str | None:
    """Train for a few steps with two real processes; return what went wrong, if anything did."""
    with tempfile.TemporaryDirectory() as folder:
        command = [*module_command("swarmstep"), "train", "digits", "--workers", "2", "--backend", "gloo"]
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
