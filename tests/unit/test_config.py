"""What a run is, as plain data: every field describes its option, and reading it does not import torch."""

from __future__ import annotations

import dataclasses
from typing import get_args

import pytest

from swarmstep.errors import UsageError
from swarmstep.train.config import Config, Group, Invocation


@pytest.mark.parametrize("kind", [Config, Invocation])
def test_every_field_describes_its_option(kind: type[Config | Invocation]) -> None:
    for field in dataclasses.fields(kind):
        assert field.metadata["help"]
        assert field.metadata["group"] in get_args(Group)
        metavar = field.metadata["metavar"]
        assert (metavar is None) == ("bool" in str(field.type) or field.name in CHOICES), field.name


CHOICES = ("method", "optimizer", "schedule", "sampling", "backend", "elastic", "balance", "tunnel")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"silence": 1.0}, "--silence: expected 2 to 1e6 seconds, found 1"),
        ({"pace": float("nan")}, "--pace: expected 0 to 1e6 seconds, found nan"),
        ({"out": "a", "resume": "b"}, "--resume and --out"),
        ({"out": "a", "no_files": True}, "--no-files"),
        ({"join": "a:1", "listen": "b:1"}, "--join"),
    ],
)
def test_an_invocation_checks_itself(given: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Invocation(**given)  # type: ignore[arg-type]
