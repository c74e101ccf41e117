"""The command lines of a trial: its own, and those of the runs that it starts."""

from __future__ import annotations

import dataclasses
import shlex
from typing import Any

from swarmstep.chaos.settings import ChaosSettings

ENDLESS = 1_000_000  # steps: more than any run under faults takes
SAVED_EVERY = 5.0  # seconds between checkpoints, at the given pace


def own_settings(settings: ChaosSettings) -> dict[str, Any]:
    """Return the settings without the data folder, which is specific to this machine."""
    return {name: value for name, value in dataclasses.asdict(settings).items() if name != "data"}


def command_line(settings: ChaosSettings) -> str:
    """Return the command that repeats the trial, without folders of this machine."""
    words = ["swarmstep", "chaos", settings.workload]
    defaults = {field.name: field.default for field in dataclasses.fields(settings)}
    for name, value in own_settings(settings).items():
        if value != defaults[name] and name != "workload":
            words += [f"--{name.replace('_', '-')}", f"{value:.12g}" if isinstance(value, float) else str(value)]
    return shlex.join(words)


def elastic(settings: ChaosSettings) -> list[str]:
    """Return the command line of the workers under faults."""
    checkpoint_every = max(1, round(SAVED_EVERY / settings.pace)) if settings.pace else ENDLESS
    return [
        *_common(settings, ENDLESS),
        *_rounds(settings),
        *(["--fault", settings.fault] if settings.fault else []),
        *("--elastic", "local", "--seed", str(settings.seed), "--checkpoint-every", str(checkpoint_every)),
        *("--pace", str(settings.pace), "--silence", str(settings.silence)),
    ]


def simulation(settings: ChaosSettings, steps: int) -> list[str]:
    """Return the command line of a simulated run without faults of `steps` steps."""
    every = ["--every", str(_every(settings))]
    return [
        *_common(settings, steps),
        *every,
        "--backend",
        "sim",
        "--shards",
        "dealt",
        "--checkpoint-every",
        str(steps),
    ]


def _common(settings: ChaosSettings, steps: int) -> list[str]:
    words = ["train", settings.workload, "--strategy", settings.strategy]
    for option in (settings.set_options or "").split(","):
        words += ["--set", option] if option else []
    words += ["--workers", str(settings.workers), "--steps", str(steps), "--eval-every", str(steps)]
    return [*words, "--schedule", "constant", *(["--data", settings.data] if settings.data else [])]


def _rounds(settings: ChaosSettings) -> list[str]:
    return ["--balance", "time", "--when", settings.when] if settings.when else _by_steps(settings)


def _by_steps(settings: ChaosSettings) -> list[str]:
    return ["--every", str(settings.every), "--balance", settings.balance]


def _every(settings: ChaosSettings) -> int:
    """Return the steps between two rounds of an equal worker without faults."""
    if not settings.when or not settings.pace:
        return settings.every
    return max(1, round(float(settings.when.removeprefix("time:")) / settings.pace))
