"""The methods without gradients by their names on the command line, and what does not go with them."""

from __future__ import annotations

import dataclasses

from swarmstep.data import sharding
from swarmstep.errors import UsageError
from swarmstep.layerwise import SSFNSettings, parse
from swarmstep.train.config import Config
from swarmstep.train.set_options import parse_settings
from swarmstep.workloads import Workload

# The fields of a Config that say something here; `checkpoint_every` does not, and has a default for all runs.
KNOWN = (
    "workload", "method", "graph", "settings", "workers", "shards", "seed", "fast_sums", "backend", "data",
    "checkpoint_every",
)  # fmt: skip
SETTINGS = {"ssfn": SSFNSettings}


def check(config: Config, workload: Workload) -> None:
    """Raise UsageError where an option does not go with a method without gradients, or is out of its range."""
    for option in dataclasses.fields(Config):
        if option.name not in KNOWN and getattr(config, option.name) != option.default:
            name, value = option.name.replace("_", "-"), getattr(config, option.name)
            raise UsageError(
                f"--{name} {value}: does not go with --method {config.method}, which has no steps, no optimizer "
                "and no rounds; leave it out"
            )
    if workload.classes is None or workload.train.targets.ndim != 1:
        raise UsageError(
            f"--method {config.method}: expected a workload of examples with a class each, found {workload.name}"
        )
    if config.backend == "nccl" or config.shards == "dealt":
        raise UsageError(f"--method {config.method}: expected --backend sim or gloo, and shards other than dealt")
    if config.seed < 0 or config.workers < 1:
        raise UsageError(f"expected a seed from 0 and workers from 1, found {config.seed} and {config.workers}")
    sharding.parse(config.shards, config.workers, workload.classes)
    build_settings(config)
    if config.graph is not None:
        parse(config.graph, config.workers)


def build_settings(config: Config) -> SSFNSettings:
    """Return the settings of a config."""
    kind = SETTINGS[config.method]
    return kind(**parse_settings(kind, config.settings))
