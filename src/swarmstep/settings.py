"""Fields of dataclasses that describe their options on the command line. Importing this does not import torch."""

from __future__ import annotations

import dataclasses
from typing import Any


def setting(default: Any, about: str, metavar: str | None = None, group: str | None = None) -> Any:
    """Return a field of a dataclass; its option on the command line has the field's name, with hyphens.

    Args:
        default: of the field.
        about: what it is, as the help says it; the help adds the default.
        metavar: what stands for the value in the help, such as "SECONDS" (None: the choices, or nothing).
        group: the heading that the option stands under (None: that of the command's own options).
    """
    return dataclasses.field(default=default, metadata={"help": about, "metavar": metavar, "group": group})


def same_setting(kind: Any, name: str) -> Any:
    """Return a field as another dataclass has it, with its default and description."""
    (field,) = (field for field in dataclasses.fields(kind) if field.name == name)
    return dataclasses.field(default=field.default, metadata=field.metadata)
