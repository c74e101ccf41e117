"""What every strategy and trigger must look like, read from the classes and their source."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import sys
from abc import ABC
from pathlib import Path
from typing import Any, Generic, get_type_hints

import pytest
import torch

import swarmstep.when
from helpers import VARIANTS
from swarmstep import STRATEGIES, CoordinateMedian, FedPSO, Strategy, When
from swarmstep.arguments import Checked
from swarmstep.cards import CARDS

TRIGGER_CLASSES = [c for c in vars(swarmstep.when).values() if inspect.isclass(c) and issubclass(c, When)]
TRIGGER_CLASSES.remove(When)
PRESETS = {CoordinateMedian, FedPSO}  # another strategy with other defaults, and nothing else
STANDARD = {"__future__", "abc", "collections", "dataclasses", "functools", "itertools", "math", "typing"}
CONTRACT = {
    "torch",
    "swarmstep.cards",
    "swarmstep.ownership",
    "swarmstep.comm.base",
    "swarmstep.errors",
    "swarmstep.seeding",
    "swarmstep.signal",
}

every_strategy = pytest.mark.parametrize("name", STRATEGIES)


@every_strategy
def test_a_strategy_is_final_frozen_and_one_level_deep(name: str) -> None:
    cls = STRATEGIES[name]
    base = cls.__mro__[1:2] if cls in PRESETS else ()
    assert cls.__mro__ == (cls, *base, Strategy, Checked, ABC, Generic, object)
    check_final_and_frozen(cls)


@pytest.mark.parametrize("cls", sorted(PRESETS, key=lambda cls: cls.__name__))
def test_a_preset_has_no_code_of_its_own(cls: type) -> None:
    docstring, *fields = ast.parse(inspect.getsource(cls)).body[0].body  # type: ignore[attr-defined]
    assert isinstance(docstring, ast.Expr)
    assert all(isinstance(field, ast.AnnAssign) for field in fields)


@pytest.mark.parametrize("cls", TRIGGER_CLASSES)
def test_a_trigger_is_final_frozen_and_one_level_deep(cls: type) -> None:
    assert cls.__mro__ == (cls, When, Checked, ABC, Generic, object)
    check_final_and_frozen(cls)


def is_final(cls: type) -> bool:
    return not any(preset is not cls and issubclass(preset, cls) for preset in PRESETS)


def check_final_and_frozen(cls: Any) -> None:
    assert cls.__dataclass_params__.frozen
    decorators = [ast.unparse(d) for d in ast.parse(inspect.getsource(cls)).body[0].decorator_list]  # type: ignore[attr-defined]
    assert ("final" in decorators) == is_final(cls)
    assert not inspect.isabstract(cls)


@every_strategy
def test_a_strategy_holds_hyper_parameters_only(name: str) -> None:
    strategy = STRATEGIES[name]()
    assert set(vars(strategy)) == {field.name for field in dataclasses.fields(strategy)}
    assert hash(strategy) == hash(STRATEGIES[name]())
    for field in dataclasses.fields(strategy):
        value = getattr(strategy, field.name)
        assert isinstance(value, (bool, int, float, str, When, type(None)))
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(strategy, field.name, value)


@every_strategy
def test_a_strategy_imports_torch_and_the_contract_only(name: str) -> None:
    found = imports(Path(inspect.getfile(STRATEGIES[name])))
    beyond = {m for m in found if m.split(".")[0] not in STANDARD and m not in CONTRACT}
    assert all(m.startswith(("swarmstep.when", "swarmstep.strategies")) for m in beyond), beyond


@pytest.mark.parametrize("cls", TRIGGER_CLASSES)
def test_a_trigger_imports_torch_and_the_contract_only(cls: type) -> None:
    found = imports(Path(inspect.getfile(cls)))
    beyond = {m for m in found if m.split(".")[0] not in STANDARD and m not in CONTRACT}
    assert beyond <= {"swarmstep.when.base"}


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            found.add(node.module or "")
    return found


@every_strategy
def test_a_strategy_takes_no_kwargs_and_asks_no_hasattr(name: str) -> None:
    tree = ast.parse(Path(inspect.getfile(STRATEGIES[name])).read_text())
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert not names & {"hasattr", "getattr", "setattr"}
    assert not any(a.kwarg or a.vararg for a in ast.walk(tree) if isinstance(a, ast.arguments))


@every_strategy
def test_exchange_names_its_message(name: str) -> None:
    """A checkpoint rebuilds a message in flight from this."""
    message = get_type_hints(STRATEGIES[name].exchange)["return"]
    assert issubclass(message, tuple)
    assert set(get_type_hints(message).values()) <= {torch.Tensor}
    assert VARIANTS[name].common in ("weights", "consensus", "none")


@every_strategy
def test_a_card_is_complete(name: str) -> None:
    cls = STRATEGIES[name]
    assert vars(cls)["card"] is CARDS[name]
    assert cls.card.title
    assert cls.card.paper
    float(cls.card.memory)
    assert set(cls().buffers) <= {"mean", "local", "first"}
    assert cls().buffers


@every_strategy
def test_a_strategy_has_an_oracle_and_a_method_card(name: str) -> None:
    root = Path(__file__).parents[2]
    assert list((root / "tests").rglob(f"test_{name.replace('-', '_')}.py"))
    card = (root / "docs" / "methods" / f"{name}.md").read_text()
    assert STRATEGIES[name].__name__ in card


def test_the_names_of_strategies_are_sorted_and_for_the_command_line() -> None:
    assert list(STRATEGIES) == sorted(STRATEGIES)
    assert all(name == name.lower() and name.replace("-", "").isalpha() for name in STRATEGIES)
    assert len(set(STRATEGIES.values())) == len(STRATEGIES)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="typing.final leaves its mark since 3.11")
def test_reading_decorators_agrees_with_python() -> None:
    for cls in [*STRATEGIES.values(), *TRIGGER_CLASSES]:
        assert "__final__" in vars(cls) or not is_final(cls)
