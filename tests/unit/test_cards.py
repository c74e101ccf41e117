"""What the cards say of each method beside its cost: when to use it, and what speaks against it, by whom."""

from __future__ import annotations

from pathlib import Path

import pytest

from swarmstep.advice import ADVICE
from swarmstep.cards import ASYNCHRONOUS, CARDS, LAYERWISE
from swarmstep.cli.app import main
from swarmstep.recipes import RECIPES

ALL = {**CARDS, **ASYNCHRONOUS, **LAYERWISE, **{name: recipe.card for name, recipe in RECIPES.items()}}
PAGES = Path(__file__).parents[2] / "docs" / "methods"


def test_every_method_has_advice_and_nothing_else_has() -> None:
    assert set(ADVICE) == set(ALL)


@pytest.mark.parametrize("name", ALL)
def test_advice_is_sentences_and_names_who_measured(name: str) -> None:
    advice = ALL[name].advice
    assert all(text.endswith(".") and "\n" not in text for text in advice[:2])
    assert advice.against
    assert all(what.endswith(".") and who for what, who in advice.against)


def plain(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("name", sorted({*CARDS, *LAYERWISE, *RECIPES} - {"ddp"}))
def test_a_page_says_what_the_card_says(name: str) -> None:
    page, advice = plain((PAGES / f"{name}.md").read_text()), ALL[name].advice
    said = [f"**Use it when**: {advice.use_when}", f"**Avoid it when**: {advice.avoid_when}"]
    said += [f"- {what} ({who})" for what, who in advice.against]
    assert [text for text in said if plain(text) not in page] == []


def test_the_command_says_it_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["strategies", "diloco"]) == 0
    text = plain(capsys.readouterr().out)
    for what, who in CARDS["diloco"].advice.against:
        assert plain(what)[:30] in text
        assert plain(who)[-12:] in text
