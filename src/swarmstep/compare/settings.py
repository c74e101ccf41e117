"""The settings of ``swarmstep compare``. Importing this does not import torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from swarmstep import spec_help
from swarmstep.errors import UsageError
from swarmstep.settings import same_setting, setting
from swarmstep.train.config import Config
from swarmstep.workloads.defaults import Optimizer, Sampling, Schedule

METHODS = "swarm,diloco,local-sgd,pso-ps,synchronous"
# As in a Config.
SAME = (
    *(
        "model",
        "objective",
        "sampling",
        "steps",
        "batch",
        "optimizer",
        "weight_decay",
        "schedule",
        "warmup",
        "clip",
        "eval_every",
    ),
    *("speeds", "jitter", "disturb"),
)


@dataclass(frozen=True)
class ComparisonSettings:
    """Which runs are compared, how they are tuned, where they run, and the target.

    Raises:
        UsageError: a number is out of its range, or settings contradict each other.
    """

    workload: str = same_setting(Config, "workload")
    strategies: str = setting(METHODS, spec_help.METHODS, "A,B,...", "Grid")
    every: str = setting("16", "local steps between rounds", "N,...", "Grid")
    workers: str = setting("4", "number of workers", "W,...", "Grid")
    shards: str = setting("iid", f"which worker holds which examples: {spec_help.SHARDS}", "SPEC,...", "Grid")
    fault: str = setting(
        "none", f"none, or what the last K ranks do wrong: {spec_help.FAULTS}", "SPEC,...", "Grid"
    )
    seeds: int = setting(3, "a run with each of the seeds 0 to K - 1", "K", "Grid")
    target_accuracy: float | None = setting(None, "test accuracy to reach, 0 to 1", "A", "Target")
    target_loss: float | None = setting(None, "test loss to reach", "L", "Target")
    target_metric: float | None = setting(
        None,
        "value of the workload's own metric to reach on the test set, 0 to 1: for imbalanced its AUC",
        "M",
        "Target",
    )
    lr_grid: str | None = setting(
        None,
        "learning rates to try (default: the workload's, a third of it, and three times it); "
        "with one rate nothing is tuned",
        "LR,...",
        "Tuning",
    )
    extra_trials: int = setting(
        1,
        "further trials at the best rate: other settings of the method, or rates next to the best",
        "K",
        "Tuning",
    )
    tune_steps: int | None = setting(None, "steps of a trial (default: half of --steps)", "N", "Tuning")
    model: str | None = same_setting(Config, "model")
    objective: str | None = same_setting(Config, "objective")
    sampling: Sampling | None = same_setting(Config, "sampling")
    steps: int | None = same_setting(Config, "steps")
    batch: int | None = same_setting(Config, "batch")
    optimizer: Optimizer | None = same_setting(Config, "optimizer")
    weight_decay: float | None = same_setting(Config, "weight_decay")
    schedule: Schedule | None = same_setting(Config, "schedule")
    warmup: int | None = same_setting(Config, "warmup")
    clip: float | None = same_setting(Config, "clip")
    speeds: str | None = same_setting(Config, "speeds")
    jitter: float = same_setting(Config, "jitter")
    disturb: str | None = same_setting(Config, "disturb")
    eval_every: int | None = setting(
        None,
        "local steps between evaluations; the target is looked for at each (default: about 20 in a run, if cheap)",
        "N",
        "Training",
    )
    backend: Literal["sim", "gloo", "netns"] = setting(
        "sim",
        "sim: all workers in one process, and a virtual clock for the network; gloo: real processes on loopback; "
        "netns: real processes on a real slow network (Linux, as root)",
        group="Network",
    )
    link: Sequence[str] = setting(
        (), f"of each worker; for the virtual clock it may be repeated: {spec_help.LINK}", "SPEC", "Network"
    )
    compute: float | None = setting(
        None, "duration of a local step for the virtual clock (default: as measured)", "SECONDS", "Network"
    )
    stragglers: str | None = setting(None, f"for the virtual clock: {spec_help.STRAGGLERS}", "SPEC", "Network")
    failures: str | None = setting(None, f"for the virtual clock: {spec_help.FAILURES}", "SPEC", "Network")
    jobs: int | None = setting(None, "simulated runs at once (default: the number of cores)", "K", "Run")
    title: str | None = setting(None, "title of the report", "TEXT", "Run")
    data: str | None = same_setting(Config, "data")

    def __post_init__(self) -> None:
        for name, low, high in (
            ("target_accuracy", 0, 1),
            ("target_loss", 0, 1e9),
            ("target_metric", 0, 1),
            ("compute", 0, 1e6),
            ("jobs", 0, 1e3),
        ):
            value = getattr(self, name)
            if value is not None and not low < value <= high:
                option = name.replace("_", "-")
                raise UsageError(f"--{option}: expected above {low} and at most {high:g}, found {value:g}")
        given = [self.target_accuracy, self.target_loss, self.target_metric]
        if sum(target is not None for target in given) > 1:
            raise UsageError("--target-accuracy, --target-loss and --target-metric: give one of them")
        for name, low in (("seeds", 1), ("extra_trials", 0)):
            if getattr(self, name) < low:
                option = name.replace("_", "-")
                raise UsageError(f"--{option}: expected at least {low}, found {getattr(self, name)}")
        self._check_network()

    def _check_network(self) -> None:
        if self.backend == "netns" and len(self.link) != 1:
            raise UsageError(f"--backend netns: expected one --link, found {len(self.link)}")
        if self.backend == "gloo" and self.link:
            raise UsageError(
                "--link: loopback has no limits; expected --backend netns, or sim with its virtual clock"
            )
        virtual = self.backend == "sim" and (self.speeds or self.jitter or self.disturb)
        if virtual and (self.link or self.stragglers or self.failures or self.compute):
            raise UsageError(
                "--speeds, --jitter and --disturb: a simulated run then has seconds of its own, in which sending "
                "takes none; expected no --link, --compute, --stragglers and --failures, or --backend netns"
            )
        if self.backend != "sim" and (self.compute or self.stragglers or self.failures):
            raise UsageError(
                "--compute, --stragglers and --failures are for the virtual clock; expected --backend sim"
            )
