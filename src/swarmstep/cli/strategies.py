"""The command ``swarmstep strategies``: the methods as a table, or one of them with its settings."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from swarmstep.cards import ASYNCHRONOUS, CARDS, LAYERWISE, Card
from swarmstep.cli.json_output import Json, print_json
from swarmstep.cli.options import completion
from swarmstep.cli.text import aligned, examples
from swarmstep.errors import UsageError
from swarmstep.train.config import ASYNCHRONOUS as NAMES

app = typer.Typer(add_completion=False)

EPILOG = examples("swarmstep strategies", "swarmstep strategies pso-ps", "swarmstep strategies --json")
TRAINED = {**CARDS, **{name: ASYNCHRONOUS[name] for name in NAMES}}  # by `swarmstep train`
SHOWN = {**TRAINED, **LAYERWISE}
NOTE = """\
traffic: what a worker sends in a round, mean over the W workers; memory: what it keeps between rounds; both in
units of P, the number of elements of the vector. The last three have no rounds:
theirs is of a job. `swarmstep strategies NAME` shows a method with its settings, also one without
gradients, for --method: ssfn."""


@app.command("strategies", epilog=EPILOG)
def strategies(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME", autocompletion=completion(SHOWN), help="the method to show with its settings"
        ),
    ] = None,
    as_json: Json = False,
) -> int:
    """List the methods, or show one of them with the settings that --set takes."""
    if name is None:
        rows = [_row(card) for card in TRAINED.values()]
        print_json(rows) if as_json else print(_table(rows))
        return 0
    if name not in SHOWN:
        raise UsageError(f"unknown strategy {name!r}; expected one of {', '.join(sorted(TRAINED))}")
    from swarmstep.train.method_settings import method_settings  # which imports torch

    card, settings = SHOWN[name], [setting._asdict() for setting in method_settings(name)]
    row = {**_row(card), "bibtex": card.bibtex or None, "settings": settings}
    print_json(row) if as_json else print(_described(card, settings))
    return 0


def _row(card: Card) -> dict[str, Any]:
    fields = ("name", "title", "traffic", "memory", "paper", "weighted")
    return {field: getattr(card, field) for field in fields}


def _table(rows: Sequence[dict[str, Any]]) -> str:
    head = ("name", "what it does", "traffic (P)", "memory (P)", "paper")
    cells = [(row["name"], row["title"], row["traffic"], row["memory"], row["paper"]) for row in rows]
    return "\n".join([*aligned([head, *cells]), "", NOTE])


def _described(card: Card, settings: Sequence[dict[str, Any]]) -> str:
    """Return all there is to say of a method."""
    weighted = "by the examples or tokens of each worker" if card.weighted else "all workers count the same"
    about = [
        ("traffic", f"{card.traffic} P sent by a worker in a round, mean over the W workers"),
        ("memory", f"{card.memory} P kept between rounds"),
        ("weights", weighted),
        ("paper", f"{card.paper}" + (f" (swarmstep cite {card.name})" if card.bibtex else "")),
    ]
    lines = [f"{card.name}: {card.title}", "", *aligned(about), ""]
    if not settings:
        return "\n".join([*lines, "It has no settings for --set."])
    lines.append("settings, for --set NAME=VALUE:")
    width = max(60, min(100, shutil.get_terminal_size().columns))
    for setting in settings:
        lines += ["", f"  {setting['name']}={_shown(setting['default'])}  ({setting['type']})"]
        lines.append(textwrap.fill(setting["about"], width, initial_indent="      ", subsequent_indent="      "))
    return "\n".join(lines)


def _shown(value: Any) -> str:
    """Return a value as --set takes it."""
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)
