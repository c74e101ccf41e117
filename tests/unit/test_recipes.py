"""Methods that are a strategy with options: every command runs."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from swarmstep.cards import CARDS, CITATIONS, bibtex
from swarmstep.cli.app import main
from swarmstep.recipes import RECIPES

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_complete(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = RECIPES[name]
    assert name == recipe.card.name
    assert name not in CARDS
    assert CITATIONS[name] == recipe.card.key
    assert recipe.card.paper.removeprefix("arXiv ") in bibtex(recipe.card.key)
    page = (ROOT / "docs" / "methods" / f"{name}.md").read_text()
    assert page.startswith(f"# {name}")
    assert main(["strategies", name]) == 0
    shown = capsys.readouterr().out
    assert all(text in shown for text in (recipe.command, recipe.measured))
    assert main(["strategies", name, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["command"] == recipe.command


@pytest.mark.parametrize("name", [name for name in RECIPES if RECIPES[name].command.startswith("--")])
def test_its_command_trains(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = shlex.split(RECIPES[name].command)
    given = ["train", "digits", "--steps", "13", "--no-files", "--every", "2", "--json", "--batch", "4"]
    if "--workers" not in words:
        given += ["--workers", "2"]
    if "--every" in words:
        at = words.index("--every")
        words = words[:at] + words[at + 2 :]
    assert main([*given, *words]) == 0
    assert json.loads(capsys.readouterr().out)["rounds"] == 6
