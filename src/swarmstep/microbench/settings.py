"""The settings of the benchmarks of ``swarmstep bench``. Importing this does not import torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from swarmstep import spec_help
from swarmstep.settings import setting

_WORKERS = "number of processes"
_REPEATS = "repeats, of which the median counts"
_LINK = (
    "run each worker in a network namespace of its own (Linux, as root; default: all on the loopback interface), "
    f"on a link {spec_help.LINK}"
)


@dataclass(frozen=True)
class BenchSettings:
    """Settings of all benchmarks."""

    seed: int = setting(0, "seed of the weights and rounds", "S")
    patience: float = setting(1800.0, "end processes that are not done after this long", "SECONDS")


@dataclass(frozen=True)
class RoundSettings(BenchSettings):
    """Settings of ``bench round``."""

    workers: int = setting(4, _WORKERS, "W")
    parameters: int = setting(10_000_000, "elements of the module", "P")
    tensors: int = setting(80, "how many tensors the elements are in", "T")
    repeats: int = setting(15, _REPEATS, "R")


@dataclass(frozen=True)
class WireSettings(RoundSettings):
    """Settings of ``bench wire``."""

    parameters: int = setting(2_500_000, "elements of the module", "P")
    repeats: int = setting(7, _REPEATS, "R")
    link: str | None = setting(None, _LINK, "SPEC")


@dataclass(frozen=True)
class OverlapSettings(BenchSettings):
    """Settings of ``bench overlap``."""

    workers: int = setting(4, _WORKERS, "W")
    repeats: int = setting(5, _REPEATS, "R")
    ddp_steps: int = setting(8, "steps of DDP a repeat; all others take 64", "N")
    link: str | None = setting(None, _LINK, "SPEC")


@dataclass(frozen=True)
class ScaleSettings(BenchSettings):
    """Settings of ``bench scale``."""

    max_processes: int = setting(16, "skip groups of more real processes", "N")
    repeats: int = setting(7, f"{_REPEATS}; fewer if they take long", "R")
    most: int = setting(500_000_000, "skip cells in which all workers together have more parameters", "P")
    quick: bool = setting(False, "the small cells only")


@dataclass(frozen=True)
class SweepSettings(BenchSettings):
    """Settings of ``bench sweep``."""

    workers: int = setting(4, "number of workers", "W")
    backend: Literal["sim", "gloo"] = setting("gloo", "sim: all workers in this process; gloo: real processes")
    length: int = setting(128, "steps of the recurrent network, a multiple of W", "T")
    hidden: int = setting(128, "its width", "H")
    gain: float = setting(0.9, "largest factor by which its recurrent matrix stretches a state", "G")
    tolerance: float = setting(1e-5, "change at which the sweeps end", "X")
