"""The example programs of sparse weights and of LocalDrop do what they say."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

from swarmstep import simulate


def program(name: str) -> ModuleType:
    path = Path(__file__).parents[2] / "examples" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"example_{name}", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert len(path.read_text().splitlines()) <= 60
    return module


def test_sparse_weights() -> None:
    accuracy, zeros, flips = simulate(program("sparse").train, 4)[0]
    assert accuracy > 0.9
    assert zeros == 0.5
    assert flips > 0


def test_localdrop() -> None:
    accuracy, found = simulate(program("localdrop").train, 4)[0]
    assert accuracy > 0.6
    assert 0.5 <= found["keep_rate"] <= 1.0
