"""What --when and --every say: the trigger of a run."""

from __future__ import annotations

from collections.abc import Callable

from swarmstep import spec_help
from swarmstep.errors import UsageError
from swarmstep.train.config import Config
from swarmstep.when import Balanced, Every, EveryTime, GradientChange, Never, QuadraticRule, When


def trigger_of(config: Config) -> tuple[When, int | None]:
    """Return the trigger of a resolved config, and the steps of its warm-up, None without one.

    Raises:
        UsageError: an unknown form, a number out of range, or none that --balance can set.
    """
    steps, spec = _warmup(config.when)
    when = parse_when(spec, 1 if config.by_gradients else config.every or 1)
    if config.balance == "steps":
        if not isinstance(when, Every) or isinstance(when.n, tuple) or steps is not None:
            raise UsageError(
                f"--balance steps: it sets when rounds start; expected --every N, found --when {config.when}"
            )
        return Balanced(when.n), None
    if config.balance == "time":
        if not isinstance(when, EveryTime) or steps is not None:
            found = f"--when {config.when}" if config.when else "--every"
            raise UsageError(f"--balance time: expected --when time:SECONDS, found {found}")
        return EveryTime(when.seconds, together=False), None
    return when, steps


def _warmup(spec: str | None) -> tuple[int | None, str | None]:
    """Return the steps of a warm-up, None without one, and the trigger that follows it."""
    if spec is None or not spec.startswith("warmup:"):
        return None, spec
    steps, _, rest = spec.removeprefix("warmup:").partition(",")
    if not steps.isdecimal():
        raise UsageError(f"unknown trigger {spec!r}; expected {spec_help.TRIGGERS}")
    return int(steps), rest or None


def parse_when(spec: str | None, every: int) -> When:
    """Return the trigger that `spec` names; without one, a round after each `every`-th step.

    Raises:
        UsageError: an unknown form or a number out of range.
    """
    if spec is None:
        return Every(every)
    name, _, rest = spec.partition(":")
    forms: dict[str, Callable[[str], When]] = {
        "every": lambda text: Every(int(text)),
        "change": lambda text: GradientChange(float(text)),
        "time": lambda text: EveryTime(float(text)),
        "qsr": lambda text: QuadraticRule(int(_first(text)), float(_rest(text))),
    }
    try:
        if spec == "never":
            return Never()
        if name in forms:
            return forms[name](rest)
    except ValueError:
        pass
    raise UsageError(f"unknown trigger {spec!r}; expected {spec_help.TRIGGERS}")


def _first(text: str) -> str:
    return text.partition(",")[0]


def _rest(text: str) -> str:
    return text.partition(",")[2]
