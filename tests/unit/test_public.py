"""What users see: names, docstrings, errors, exit codes, and what importing does not do."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
from pathlib import Path

import pytest

import swarmstep
import swarmstep.errors as errors
from swarmstep import STRATEGIES

NAMES = [name for name in swarmstep.__all__ if name != "STRATEGIES"]


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_and_method_is_documented(name: str) -> None:
    found = getattr(swarmstep, name)
    assert len(inspect.getdoc(found) or "") > 20
    assert not (inspect.getdoc(found) or "").startswith(f"{name}("), "the docstring dataclasses make up"
    if inspect.isclass(found):
        for method, member in inspect.getmembers(found):
            if not method.startswith("_") and (inspect.isroutine(member) or isinstance(member, property)):
                assert len(inspect.getdoc(member) or "") > 15, f"{name}.{method}"


def order(name: str) -> tuple[int, str]:
    """CONSTANTS, then Classes, then functions, as ruff's RUF022 sorts."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2), name


def test_all_is_sorted_and_complete() -> None:
    assert swarmstep.__all__ == sorted(set(swarmstep.__all__), key=order)
    assert {cls.__name__ for cls in STRATEGIES.values()} <= set(swarmstep.__all__)
    classes = {name for name, value in vars(swarmstep).items() if inspect.isclass(value)}
    assert classes <= set(swarmstep.__all__)


def test_what_a_type_checker_reads_is_what_is_imported() -> None:
    """Public names are imported when they are first used; the two lists of where they are must agree."""
    tree = ast.parse(Path(swarmstep.__file__).read_text())
    (checked,) = (node for node in tree.body if isinstance(node, ast.If) and isinstance(node.test, ast.Name))
    read = {
        alias.name: node.module
        for node in checked.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert read == swarmstep._MODULES
    assert {*read} == {*swarmstep.__all__} == {*dir(swarmstep)}
    for name, module in read.items():
        assert getattr(swarmstep, name) is getattr(importlib.import_module(str(module)), name)


def test_all_names_can_be_imported_at_once() -> None:
    names: dict[str, object] = {}
    exec("from swarmstep import *", names)
    assert {*swarmstep.__all__} <= {*names}


def test_a_name_that_does_not_exist() -> None:
    with pytest.raises(AttributeError, match="module 'swarmstep' has no attribute 'Synchroniser'"):
        swarmstep.Synchroniser  # noqa: B018


def test_options_and_reports_say_what_each_field_is() -> None:
    for cls in (swarmstep.Options, swarmstep.Round):
        text = inspect.getdoc(cls) or ""
        missing = [f.name for f in dataclasses.fields(cls) if not re.search(rf"\b{f.name}\b", text)]
        assert set(missing) <= {"step", "strategy"}, missing


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_documents_every_argument_cost_and_source(name: str) -> None:
    cls = STRATEGIES[name]
    text = inspect.getdoc(cls) or ""
    own = [f.name for f in dataclasses.fields(cls) if f.name in cls.__annotations__ and f.name != "when"]
    missing = [field for field in own if not re.search(rf"^\s+{field}: ", text, re.MULTILINE)]
    assert not missing
    assert "Cost:" in text
    assert "Source:" in text or cls.card.paper == "baseline"


def drawn() -> dict[str, tuple[str, int | None]]:
    """Return what the tree in the docstring of errors.py says: name -> (parent, exit code)."""
    found: dict[str, tuple[str, int | None]] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"^    ([│├└─ ]*)([A-Z]\w+)(?: .*?(?:\(exit (\d+)\))?)?$", line)
        if match:
            depth = len(match[1]) // 4
            path = [*path[:depth], match[2]]
            found[match[2]] = (path[depth - 1] if depth else "Exception", int(match[3]) if match[3] else None)
    return found


def test_the_tree_of_errors_is_as_drawn() -> None:
    classes = {n: c for n, c in vars(errors).items() if inspect.isclass(c) and issubclass(c, Exception)}
    tree = drawn()
    assert set(tree) == set(classes)
    for name, (parent, code) in tree.items():
        assert [base.__name__ for base in classes[name].__bases__] == [parent]
        if code is not None:
            assert classes[name].exit_code == code
        elif name != "SwarmstepError":
            assert classes[name].exit_code == classes[parent].exit_code
        assert inspect.getdoc(classes[name])


def test_exit_codes_tell_the_errors_apart() -> None:
    direct = errors.SwarmstepError.__subclasses__()
    codes = [cls.exit_code for cls in direct]
    assert len(set(codes)) == len(codes)
    assert not set(codes) & {0, 1}
    assert errors.SwarmstepError.exit_code == 1
