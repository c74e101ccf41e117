"""Loads a workload: a built-in one by name, or one of the user's own from a Python file."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from swarmstep.errors import DataError, UsageError
from swarmstep.workloads.base import Workload
from swarmstep.workloads.defaults import BUILT_IN


def load(name: str, data: Path | None = None) -> Workload:
    """Return the workload `name`.

    Args:
        name: a key of BUILT_IN, where its module takes one with a variant behind a colon
            (``imbalanced:digits:0.02``), or ``path/to/file.py:attribute``. The attribute is a Workload or a
            function that returns one; the function takes the data folder, or nothing.
        data: the folder of the data files; for text a file, the text itself. None: the environment variable
            SWARMSTEP_DATA, else ./data.

    Raises:
        UsageError: the name, file or attribute does not exist, or is not a Workload.
        DataError: data files are missing or damaged.
    """
    base, colon, variant = name.partition(":")
    if base in BUILT_IN:
        loader = importlib.import_module(f"swarmstep.workloads.{base}").load
        if not colon:
            return loader(data)
        if "variant" in inspect.signature(loader).parameters:
            return loader(data, variant=variant)
    path, _, attribute = name.rpartition(":")
    if not path.endswith(".py") or not attribute:
        valid = f"one of {', '.join(BUILT_IN)}, or path/to/file.py:attribute"
        raise UsageError(f"unknown workload {name!r}; expected {valid}")
    return _from_file(Path(path), attribute, data)


def _from_file(file: Path, attribute: str, data: Path | None) -> Workload:
    if not file.is_file():
        raise UsageError(f"workload file {file} does not exist (looked in {Path.cwd()})")
    module: ModuleType = _run(file, lambda: _execute(file))
    if not hasattr(module, attribute):
        found = ", ".join(key for key in vars(module) if not key.startswith("_")) or "nothing"
        raise UsageError(f"{file} has no attribute {attribute!r}; found {found}")
    value = getattr(module, attribute)
    if callable(value):
        loader = value
        value = _run(file, lambda: loader(data) if inspect.signature(loader).parameters else loader())
    if not isinstance(value, Workload):
        kind = type(value).__name__
        raise UsageError(f"{file}:{attribute} must be a Workload or a function returning one, found {kind}")
    return value


def _execute(file: Path) -> ModuleType:
    name = f"swarmstep_workload_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file.resolve())
    assert spec is not None, file  # the suffix is .py
    assert spec.loader is not None, file
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look a class's module up there
    if (folder := str(file.resolve().parent)) not in sys.path:
        sys.path.insert(0, folder)  # as for a script, so that it can import its neighbours
    spec.loader.exec_module(module)
    return module


def _run(file: Path, call: Callable[[], Any]) -> Any:
    """Return `call()`, which runs code of `file`; turn an exception into a one-line UsageError that says where."""
    try:
        return call()
    except DataError:
        raise
    except (Exception, SystemExit) as error:
        trace = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in trace if frame.filename == str(file.resolve())]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
        where = f"{file}, line {line}" if line else str(file)
        raise UsageError(f"{where}: {type(error).__name__}: {' '.join(str(error).split())}") from error
