"""What a release promises: one version, and public names that change only on purpose."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import swarmstep
from swarmstep.cli import main

ROOT = Path(__file__).parents[2]
SOURCE = Path(swarmstep.__file__).parent
NAMES = Path(__file__).with_name("public_names.txt")
# Beside the packages that declare `__all__`: their names are all without an underscore.
WITHOUT_ALL = (
    "errors",
    "modifier",
    "seeding",
    "signal",
    "tracking",
    *sorted(f"integrations.{file.stem}" for file in (SOURCE / "integrations").glob("[a-z]*.py")),
)
INTERNAL = {"cli", "report"}  # packages that declare `__all__` and are no library


def declared(file: Path) -> list[str]:
    """Return the names that a module declares: its `__all__`, or what it defines without an underscore."""
    names: list[str] = []
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.append(node.name)
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                if isinstance(target, ast.Name) and target.id == "__all__":
                    assert node.value is not None
                    return ast.literal_eval(node.value)
                names += [target.id] if isinstance(target, ast.Name) else []
    return [name for name in names if not name.startswith("_")]


def public() -> list[str]:
    """Return every public name with its module, sorted."""
    packages = {
        file.parent.relative_to(SOURCE.parent): file
        for file in SOURCE.rglob("__init__.py")
        if "\n__all__ = [" in file.read_text() and file.parent.name not in INTERNAL
    }
    modules = {Path("swarmstep", *name.split(".")): SOURCE.joinpath(*name.split(".")) for name in WITHOUT_ALL}
    found = {path: file.with_suffix(".py") for path, file in modules.items()} | packages
    return sorted(f"{'.'.join(path.parts)}.{name}" for path, file in found.items() for name in declared(file))


def test_public_names_are_these_and_no_others() -> None:
    """After a change on purpose: `python tests/unit/test_release.py`, and a line in the changelog."""
    assert public() == NAMES.read_text().split()


def test_one_version_everywhere(capsys: pytest.CaptureFixture[str]) -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+(?:\.dev\d+|rc\d+)?", swarmstep.__version__)
    project = (ROOT / "pyproject.toml").read_text()
    assert 'dynamic = ["version"]' in project
    assert 'version = { attr = "swarmstep.__version__" }' in project
    assert f"\nversion: {swarmstep.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.split() == ["swarmstep", swarmstep.__version__]


def test_training_needs_no_tools() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    (needed,) = re.findall(r"^dependencies = \[(.*?)\]", project, re.MULTILINE | re.DOTALL)
    names = {re.split(r"[<>=!~\[ ]", text)[0] for text in ast.literal_eval(f"[{needed}]")}
    assert names == {"torch", "numpy", "safetensors", "rich", "typer", "typing-extensions"}


if __name__ == "__main__":
    NAMES.write_text("\n".join(public()) + "\n")
