"""One's own workload, by file, and every wrong way to ask for one."""

from __future__ import annotations

from pathlib import Path

import pytest

from swarmstep.errors import DataError, UsageError
from swarmstep.workloads import base, load

OWN = """
import torch
from torch import nn
from swarmstep.workloads import Defaults, Examples, Workload

x = torch.randn(20, 8, generator=torch.Generator().manual_seed(0))
y = (x.sum(1) > 0).long()

def build(data="default"):
    return Workload(str(data), Examples(x, y), Examples(x, y), {"linear": lambda: nn.Linear(8, 2)}, Defaults(), 2)

def nothing():
    return build("no folder")

def fails(data):
    return [][data]

def needs_more(a, b):
    return build()

workload = build()
number = 5
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    file = tmp_path / "own.py"
    file.write_text(OWN)
    return file


@pytest.mark.parametrize(
    ("attribute", "name"), [("workload", "default"), ("build", "/the/data"), ("nothing", "no folder")]
)
def test_ones_own_workload(own: Path, attribute: str, name: str) -> None:
    workload = load(f"{own}:{attribute}", Path("/the/data"))
    assert workload.name == name
    x, y = workload.train.inputs, workload.train.targets
    assert workload.loss(workload.models["linear"]()(workload.prepare(x)), y).isfinite()


def test_the_example_of_the_docstring_works(tmp_path: Path) -> None:
    assert base.__doc__
    code = base.__doc__.split("::\n", 1)[1]
    file = tmp_path / "my.py"
    file.write_text("\n".join(line[4:] for line in code.splitlines()))
    workload = load(f"{file}:workload")
    assert (workload.name, len(workload.train), len(workload.test)) == ("halves", 1600, 400)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (
            "mnst",
            "unknown workload 'mnst'; expected one of digits, mnist, cifar10, imbalanced, text, spiking, or",
        ),
        ("", "unknown workload ''; expected one of"),
        ("own.py", "unknown workload 'own.py'; expected one of"),
        ("own.py:", "unknown workload 'own.py:'; expected one of"),
        ("none.py:workload", "workload file none.py does not exist (looked in "),
        ("own.py:worklaod", "own.py has no attribute 'worklaod'; found "),
        ("own.py:number", "own.py:number must be a Workload or a function returning one, found int"),
        ("own.py:fails", "own.py, line 16: TypeError: list indices must be integers"),
        ("own.py:needs_more", "own.py: TypeError: needs_more() missing 1 required positional argument"),
        ("own.py:nn", "own.py:nn must be a Workload or a function returning one, found module"),
        ("own.py:torch", "found module"),
    ],
)
def test_wrong_names(own: Path, monkeypatch: pytest.MonkeyPatch, name: str, reason: str) -> None:
    monkeypatch.chdir(own.parent)
    with pytest.raises(UsageError) as error:
        load(name)
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("x = 1\n\nraise ValueError('two\\nlines')", "bad.py, line 3: ValueError: two lines"),
        ("def f(:", "bad.py, line 1: SyntaxError: "),
        ("import no_such_module_at_all", "bad.py, line 1: ModuleNotFoundError: No module named"),
        ("import sys\nsys.exit(4)", "bad.py, line 2: SystemExit: 4"),
        (OWN.replace("(x, y), Examples", "(x[1:], y), Examples"), "UsageError: inputs and targets must have"),
    ],
)
def test_files_that_raise(tmp_path: Path, code: str, reason: str) -> None:
    (tmp_path / "bad.py").write_text(code)
    with pytest.raises(UsageError) as error:
        load(f"{tmp_path}/bad.py:workload")
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_data_of_ones_own_stay_a_data_error(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text("from swarmstep.errors import DataError\ndef get(data): raise DataError(f'none in {data}')")
    with pytest.raises(DataError, match="none in /x"):
        load(f"{file}:get", Path("/x"))
