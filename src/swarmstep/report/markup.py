"""HTML that cannot be injected into: whatever is not `Markup` already is escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

_VOID = ("input", "wbr")  # elements that have no end


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def join(parts: Iterable[str]) -> Markup:
    """Return the parts one after the other, escaped where they are plain text."""
    return Markup("".join(part if isinstance(part, Markup) else html.escape(part) for part in parts))


def tag(element: str, *content: str, **attributes: str | None) -> Markup:
    """Return an element; attributes that are None are left out, `class_` is class and `data_x` is data-x."""
    given = {key.rstrip("_").replace("_", "-"): text for key, text in attributes.items() if text is not None}
    inside = "".join(f' {key}="{html.escape(text)}"' for key, text in given.items())
    return Markup(f"<{element}{inside}>" + (f"{join(content)}</{element}>" if element not in _VOID else ""))


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "") -> Markup:
    """Return a table in a box that scrolls by itself; the first cell of each row is its head."""
    head = tag("thead", tag("tr", *[tag("th", text, scope="col") for text in heads]))
    lines = [tag("tr", tag("th", row[0], scope="row"), *[tag("td", text) for text in row[1:]]) for row in rows]
    named = [tag("caption", caption)] if caption else []
    return box(tag("table", *named, head, tag("tbody", *lines)), caption or "table")


def box(content: Markup, label: str) -> Markup:
    """Return content that may be wider than the page, in a box that scrolls by touch and keyboard."""
    return tag("div", content, class_="scroll", tabindex="0", role="region", aria_label=label)
