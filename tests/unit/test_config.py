"""What a run is, as plain data: every field describes its option, and reading it does not import torch."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

import swarmstep
from swarmstep.errors import UsageError
from swarmstep.train.config import Config, Group, Invocation

ALONE = """
import sys, types
package = types.ModuleType("swarmstep")  # in place of swarmstep/__init__.py
package.__path__ = [sys.argv[1]]
sys.modules["swarmstep"] = package
from swarmstep.train.config import Config
from swarmstep.workloads import BUILT_IN
assert "torch" not in sys.modules, "torch was imported"
"""


def test_the_help_needs_no_torch() -> None:
    folder = str(Path(swarmstep.__file__).parent)
    subprocess.run([sys.executable, "-c", ALONE, folder], check=True, timeout=60)


@pytest.mark.parametrize("kind", [Config, Invocation])
def test_every_field_describes_its_option(kind: type[Config | Invocation]) -> None:
    for field in dataclasses.fields(kind):
        assert field.metadata["help"]
        assert field.metadata["group"] in get_args(Group)
        metavar = field.metadata["metavar"]
        assert (metavar is None) == ("bool" in str(field.type) or field.name in CHOICES), field.name


CHOICES = ("optimizer", "schedule", "backend", "elastic")


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
