"""The folder of a run: what it was, what happened, what came out.

::

    config.json  environment.json  metrics.jsonl  summary.json  model.safetensors  checkpoints/  lock
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import platform
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import nn

from swarmstep.console import plain
from swarmstep.errors import CheckpointError
from swarmstep.train.config import Config
from swarmstep.train.model_file import save_model


class RunFolder:
    """Writes the files of one run; one process at a time, held by a lock on the file `lock`.

    Args:
        path: a new or empty folder, or with `resume` that of an earlier run.
        resume: go on with the run that is there.
        held: another process holds the folder, for this one and others.

    Raises:
        CheckpointError: the folder holds something already, is in use, cannot be written, or holds no run.
    """

    def __init__(self, path: Path, *, resume: bool = False, held: bool = False) -> None:
        self.path = path
        self._lock: IO[str] | None = None
        if held:
            return
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._check_empty(resume)
            self._lock = locked(path / "lock")
            self._check_empty(resume)  # another run may have begun and ended in between
        except BlockingIOError:
            raise CheckpointError(f"{path} is in use by another process; wait for it, or end it") from None
        except OSError as error:
            raise CheckpointError(f"{path} cannot be written: {error.strerror}; give another --out") from None

    def _check_empty(self, resume: bool) -> None:
        """Refuse a folder that holds anything but the lock of a run that did not begin."""
        foreign = sorted(entry.name for entry in self.path.iterdir() if entry.name != "lock")
        if foreign and not resume:
            self.close()
            raise CheckpointError(
                f"{self.path} is in use: it holds {foreign[0]}; give another --out, or go on with "
                f"--resume {shlex.quote(str(self.path))}"
            )

    def write(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file atomically; numbers that are not finite become null."""
        self._replace(name, lambda partial: partial.write_text(json.dumps(plain(content), indent=2) + "\n"))

    def write_settings(self, config: Config) -> None:
        """Write config.json, with a digest by which damage is noticed, and environment.json.

        The run is not done, or not any more: there is no summary.
        """
        content = dataclasses.asdict(config)
        self.write("config.json", {**content, "digest": _digest(content)})
        self.write("environment.json", environment())
        (self.path / "summary.json").unlink(missing_ok=True)

    def append(self, *rows: Mapping[str, Any]) -> None:
        """Add lines to metrics.jsonl: all of them, or none."""
        lines = "".join(json.dumps(plain(row)) + "\n" for row in rows).encode()
        try:
            with (self.path / "metrics.jsonl").open("ab", buffering=0) as file:
                size = file.seek(0, os.SEEK_END)
                try:
                    while lines:
                        lines = lines[file.write(lines) :]
                except OSError:
                    file.truncate(size)  # the part of them for which there was room
                    raise
        except OSError as error:
            raise _unwritable(self.path / "metrics.jsonl", error) from None

    def rewind(self, step: int) -> None:
        """Drop the lines of metrics.jsonl after `step`, which a resumed run writes again."""
        file = self.path / "metrics.jsonl"
        if file.exists():
            lines = file.read_text(errors="replace").splitlines(keepends=True)
            if (
                lines and '"kind": "trace"' in lines[-1]
            ):  # a run that was done ends with its last evaluation and this
                del lines[-2:]
            kept = "".join(line for line in lines if _step_of(line) <= step)
            self._replace(file.name, lambda partial: partial.write_text(kept))

    def newest(self, kind: str) -> dict[str, Any]:
        """Return the last line of metrics.jsonl of a kind; empty if there is none."""
        file = self.path / "metrics.jsonl"
        for line in reversed(file.read_text(errors="replace").splitlines() if file.exists() else []):
            if f'"kind": "{kind}"' in line:
                return json.loads(line)
        return {}

    def save_model(self, model: nn.Module) -> None:
        """Write the model to model.safetensors, atomically."""
        self._replace("model.safetensors", lambda partial: save_model(model, partial))

    def _replace(self, name: str, write: Callable[[Path], object]) -> None:
        replace_file(self.path / name, write)

    def close(self) -> None:
        """Let go of the folder."""
        if self._lock:
            self._lock.close()


def replace_file(file: Path, write: Callable[[Path], object]) -> None:
    """Let `write` write a file beside `file`, then put it in its place.

    Raises:
        CheckpointError: it cannot be written.
    """
    from safetensors import SafetensorError

    partial = file.with_name(f".{file.name}.partial")
    try:
        if file.is_char_device() or file.is_fifo():  # /dev/stdout, say: nothing may take its place
            write(file)
            return
        write(partial)
        os.replace(partial, file)
    except (OSError, RuntimeError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise _unwritable(file, error) from None


def read_config(path: Path, *, done: bool = False) -> Config:
    """Return the config of the run in `path`, which may be `done` only if that is said.

    Raises:
        CheckpointError: there is none, or it is damaged, or of another version, or the run is done.
    """
    file = path / "config.json"
    try:
        content = json.loads(file.read_text())
    except OSError as error:
        raise CheckpointError(f"{path} holds no run to resume: {file}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is damaged: {error}") from None
    known = {"digest", *(f.name for f in dataclasses.fields(Config))}
    if not isinstance(content, dict) or set(content) != known:
        odd = sorted(known ^ set(content)) if isinstance(content, dict) else ["everything"]
        raise CheckpointError(f"{file}: {odd[0]!r}: missing or unknown; the run is of another version, or foreign")
    if content.pop("digest") != _digest(content):
        raise CheckpointError(f"{file} is damaged or was edited: its digest does not fit; start a new run")
    if not done and (path / "summary.json").exists():
        raise CheckpointError(
            f"{path}: the run is done, see its summary.json; give more --steps to train on, or another --out for "
            "a new run"
        )
    return Config(**content)


def steps_taken(path: Path) -> int | None:
    """Return how many steps the run in `path` has taken; None unless it is done.

    Raises:
        CheckpointError: its summary is damaged.
    """
    file = path / "summary.json"
    try:
        return int(json.loads(file.read_text())["steps_taken"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise CheckpointError(f"{file} is damaged: {error}; start a new run") from None


def new_folder(config: Config, root: Path = Path("runs")) -> Path:
    """Make a folder with a name that was not taken, such as runs/mnist-pso-ps-n16-w4-s0-2, and return it.

    Raises:
        CheckpointError: it cannot be made.
    """
    workload = Path(config.workload.split(":")[0]).stem
    every = f"-n{config.every}" if config.every else ""
    stem = f"{workload}-{config.means}{every}-w{config.workers}-s{config.seed}"
    number = 1
    while True:
        path = root / (stem if number == 1 else f"{stem}-{number}")
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:  # also where another run takes the name in this very moment
            number += 1
        except OSError as error:
            raise CheckpointError(f"{path} cannot be made: {error.strerror}; give --out") from None


def environment() -> dict[str, Any]:
    """Return what a run's numbers may depend on besides its config."""
    from swarmstep import __version__

    return {
        "swarmstep": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "command": sys.argv,
    }


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(plain(content), sort_keys=True).encode()).hexdigest()


def _unwritable(file: Path, error: Exception) -> CheckpointError:
    why = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return CheckpointError(f"{file} cannot be written: {why}; free space, then go on")


def _step_of(line: str) -> float:
    try:
        row = json.loads(line)
        return float(row.get("landed", row["step"]))
    except (ValueError, KeyError, TypeError, AttributeError):
        return math.inf  # a line cut short by a crash


def locked(path: Path) -> IO[str]:
    """Return the file, locked until it is closed or the process ends; unlocked where there is no flock.

    Raises BlockingIOError where another process holds it.
    """
    file = path.open("a")
    try:
        import fcntl

        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:
        pass
    except OSError:
        file.close()
        raise
    return file
