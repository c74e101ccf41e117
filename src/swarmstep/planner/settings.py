"""The settings of ``swarmstep plan``. Importing this does not import torch."""

from __future__ import annotations

from dataclasses import dataclass

from swarmstep import spec_help
from swarmstep.errors import UsageError
from swarmstep.settings import same_setting, setting
from swarmstep.train.config import ASYNCHRONOUS, BASELINES, Config


@dataclass(frozen=True)
class PlanSettings:
    """What is planned, and where.

    Raises:
        UsageError: a value is out of its range, or settings contradict each other.
    """

    workload: str = same_setting(Config, "workload")
    link: str | None = setting(None, f"between each worker and the others: {spec_help.LINK}", "SPEC")
    measure: bool = setting(
        False,
        "measure in real processes, W of them on this machine or those that torchrun has started on several; "
        "without --link their link, too",
    )
    workers: int = same_setting(Config, "workers")
    every: str = setting("1,8,32,128", "local steps between rounds to price", "N,...")
    strategy: str = same_setting(Config, "strategy")
    codec: str = setting("int8", f"to price beside float32: {spec_help.CODECS}", "SPEC")
    model: str | None = same_setting(Config, "model")
    batch: int | None = same_setting(Config, "batch")
    steps: int | None = same_setting(Config, "steps")
    optimizer: str | None = same_setting(Config, "optimizer")
    data: str | None = same_setting(Config, "data")

    def __post_init__(self) -> None:
        if not (self.link or self.measure):
            raise UsageError("plan: expected --link SPEC, say 100mbit,20ms, or --measure between real processes")
        if self.strategy in (*BASELINES, *ASYNCHRONOUS):
            raise UsageError(f"plan: {self.strategy} has no rounds to plan; give another --strategy")
        if not 2 <= self.workers <= 1024:
            raise UsageError(f"--workers: expected 2 to 1024, found {self.workers}")
        _ = self.everies

    @property
    def everies(self) -> list[int]:
        """Each n to price."""
        words = self.every.split(",")
        if not all(word.strip().isdecimal() and int(word) >= 1 for word in words):
            raise UsageError(f"--every: expected numbers of steps from 1, such as 1,8,32, found {self.every!r}")
        return [int(word) for word in words]

    @property
    def config(self) -> Config:
        """What a worker trains, with the workload's defaults where nothing is said."""
        names = ("workload", "workers", "strategy", "model", "batch", "steps", "optimizer", "data")
        return Config(**{name: getattr(self, name) for name in names})
