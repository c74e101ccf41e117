"""The link of a worker: its rate, delay and loss."""

from __future__ import annotations

import re
from dataclasses import dataclass

from swarmstep.errors import UsageError
from swarmstep.spec_help import LINK

_UNITS = ((1e9, "Gbit/s"), (1e6, "Mbit/s"), (1e3, "kbit/s"))
_RATES = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9}
_TIMES = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


@dataclass(frozen=True)
class Link:
    """The link between each worker and the switch.

    Args:
        rate: bits per second, in each direction.
        delay: seconds from one worker to another, one way, besides the time to send the packet.
        loss: probability that a packet is lost, 0 to 0.5.
    """

    rate: float
    delay: float = 0.0
    loss: float = 0.0


def parse(spec: str) -> Link:
    """Return the link that a specification such as ``100mbit,5ms,0.1%`` describes.

    Raises:
        UsageError: the specification is malformed, or a number is out of range.
    """
    rate, *rest = [part.strip().lower() for part in spec.split(",")]
    number = re.fullmatch(r"(\d+(?:\.\d+)?)([kmg]?)bit", rate)
    values: dict[str, float] = {}
    for part in rest:
        time, share = re.fullmatch(r"(\d+(?:\.\d+)?)(us|ms|s)", part), re.fullmatch(r"(\d+(?:\.\d+)?)%", part)
        name, value = ("delay", float(time[1]) * _TIMES[time[2]]) if time else ("loss", -1.0)
        value = float(share[1]) / 100 if share else value
        if value < 0 or name in values:
            raise UsageError(f"link {spec!r}: unknown part {part!r}; expected {LINK}")
        values[name] = value
    link = Link(float(number[1]) * _RATES[number[2]] if number else 0.0, **values)
    if not 1e3 <= link.rate <= 1e12:
        raise UsageError(f"link {spec!r}: the rate must be 1kbit to 1000gbit, with its unit; expected {LINK}")
    if link.delay > 10 or link.loss > 0.5:
        raise UsageError(
            f"link {spec!r}: the delay must be at most 10 s and the loss at most 50 %; expected {LINK}"
        )
    return link


def in_words(link: Link, digits: int = 6) -> list[str]:
    """Return what a link has, for people: "100 Mbit/s", and where there are any "5 ms" and "0.1 % loss".

    Args:
        link: to describe.
        digits: significant ones of each number.
    """
    size, unit = next(((size, unit) for size, unit in _UNITS if link.rate >= size), _UNITS[-1])
    parts = [f"{link.rate / size:.{digits}g} {unit}"]
    parts += [f"{link.delay * 1e3:.{digits}g} ms"] * bool(link.delay)
    parts += [f"{link.loss * 100:.{digits}g} % loss"] * bool(link.loss)
    return parts
