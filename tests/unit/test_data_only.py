"""What arrives, from a peer or from a file, is data: nothing in the package runs or unpickles it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import swarmstep

ROOT = Path(swarmstep.__file__).parent
MODULES = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "yaml", "multiprocessing"}
BUILTINS = {"eval", "exec", "compile", "__import__"}
# The rest of a dotted name that loads objects, unless told otherwise.
LOADS = {"torch.jit.load", "torch.hub.load", "torch.package", "torch.export.load", "torch.distributed.rpc"}
LOADS |= {"torch.multiprocessing", "concurrent.futures.ProcessPoolExecutor", "xmlrpc", "logging.config.listen"}
OBJECTS = re.compile(r"\w*(gather|broadcast|scatter|send|recv)_object(_list)?")  # the collectives that pickle
ALLOWED: dict[str, str] = {}  # "module: source" and why it is no danger


def dotted(node: ast.expr) -> str:
    """Return a.b.c for the expression, as far as it is one."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def argument(call: ast.Call, name: str) -> object:
    """Return the constant that is given as `name`, or None."""
    found = [keyword.value for keyword in call.keywords if keyword.arg == name]
    return found[0].value if found and isinstance(found[0], ast.Constant) else None


def dangerous_call(call: ast.Call) -> bool:
    name = dotted(call.func)
    return (
        name in BUILTINS
        or (name == "torch.load" and argument(call, "weights_only") is not True)
        or argument(call, "allow_pickle") is True
        or argument(call, "shell") is True
        or name in ("os.system", "os.popen")
        or OBJECTS.fullmatch(name.rpartition(".")[2]) is not None
    )


def imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
    return []


def findings(source: str) -> Iterator[str]:
    """Yield the source of each node that could run or unpickle what arrives."""
    for node in ast.walk(ast.parse(source)):
        names = imported(node)
        if (
            any(name.split(".")[0] in MODULES or name in {*LOADS, "torch.load"} for name in names)
            or any(OBJECTS.fullmatch(name.rpartition(".")[2]) for name in names)
            or (isinstance(node, ast.Call) and dangerous_call(node))
            or (isinstance(node, ast.Attribute) and dotted(node) in LOADS)
        ):
            yield ast.unparse(node)


def test_the_package_takes_what_arrives_as_data() -> None:
    files = sorted(ROOT.rglob("*.py"))
    assert len(files) > 50
    found = {
        f"{file.relative_to(ROOT).as_posix()}: {what}"
        for file in files
        for what in findings(file.read_text("utf-8"))
    }
    assert found == set(ALLOWED)


BAD = [
    "import pickle",
    "from pickle import loads",
    "import yaml",
    "import multiprocessing.connection",
    "from multiprocessing import Pipe",
    "import torch.distributed.rpc",
    "from torch.distributed import all_gather_object",
    "torch.load(path)",
    "torch.load(path, weights_only=False)",
    "torch.load(path, weights_only=flag)",
    "from torch import load",
    "numpy.load(path, allow_pickle=True)",
    "dist.gather_object(x)",
    "dist.broadcast_object_list(x)",
    "dist.send_object_list(x)",
    "dist.scatter_object_list(x)",
    "torch.jit.load(path)",
    "import torch.multiprocessing",
    "from torch import multiprocessing",
    "from concurrent.futures import ProcessPoolExecutor",
    "concurrent.futures.ProcessPoolExecutor()",
    "eval(text)",
    "exec(text)",
    "subprocess.run(text, shell=True)",
    "os.system(text)",
]


@pytest.mark.parametrize("line", BAD)
def test_what_would_be_found(line: str) -> None:
    assert list(findings(f"def f():\n    {line}\n"))


GOOD = [
    "load(path)",
    "ctypes.py_object(group)",
    "torch.load(path, map_location='cpu', weights_only=True)",
    "model.eval()",
    "json.loads(text)",
    "numpy.load(path)",
    "re.compile(text)",
    "loader.exec_module(module)",
    "subprocess.run(['true'])",
]


@pytest.mark.parametrize("line", GOOD)
def test_what_would_not(line: str) -> None:
    assert not list(findings(line))
