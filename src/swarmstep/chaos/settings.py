"""The settings of ``swarmstep chaos``: a run under faults. Importing this does not import torch."""

from __future__ import annotations

from dataclasses import dataclass

from swarmstep import spec_help
from swarmstep.chaos import schedule
from swarmstep.chaos.schedule import KINDS
from swarmstep.errors import UsageError
from swarmstep.network import link
from swarmstep.settings import same_setting, setting
from swarmstep.train.config import Balance, Config


@dataclass(frozen=True)
class ChaosSettings:
    """How the run is trained, which faults are injected, and which runs it is compared with.

    Raises:
        UsageError: a value is out of its range.
    """

    workload: str = same_setting(Config, "workload")
    workers: int = setting(8, "number of workers, at least 3", "W", "Run")
    minutes: float = setting(5.0, "duration of the run under faults", "M", "Faults")
    faults_per_hour: float = setting(120.0, "how many faults", "F", "Faults")
    kinds: str | None = setting(
        None, f"kinds of faults (default: {','.join(KINDS)}, as far as possible)", "A,B,...", "Faults"
    )
    seed: int = setting(0, "seed of the schedule and of the run", "S", "Faults")
    strategy: str = same_setting(Config, "strategy")
    every: int = setting(16, "local steps between rounds", "N", "Run")
    pace: float = setting(0.1, "least duration of a local step", "SECONDS", "Run")
    silence: float = setting(2.0, "a worker that gives no sign of life for this long is lost", "SECONDS", "Run")
    link: str = setting("1gbit", f"of each worker, as root: {spec_help.LINK}", "SPEC", "Run")
    baseline_seconds: float = setting(
        30.0, "duration of the run without faults that the throughput is compared with; 0: none", "SECONDS",
        "Comparison",
    )  # fmt: skip
    fault_free_runs: int = setting(
        3, "simulated runs that the loss is compared with: 0, or at least 2", "K", "Comparison"
    )
    data: str | None = same_setting(Config, "data")
    balance: Balance = same_setting(Config, "balance")
    when: str | None = setting(
        None, "rounds by time, with --balance time: time:SECONDS, in place of --every", "SPEC", "Run"
    )
    fault: str | None = same_setting(Config, "fault")
    set_options: str | None = setting(None, "options of the strategy: NAME=VALUE,NAME=VALUE", "N=V,...", "Run")
    store: str | None = setting(
        None,
        "etcd: the command starts one of three machines, and several supervisors (default: none)",
        "etcd",
        "Run",
    )
    supervisors: int = setting(
        4, "how many supervisors share the workers, with --store etcd; one each at most", "S", "Run"
    )
    together: float = setting(
        0.0, "share of the faults that strike at once with the one before, 0 to 1", "SHARE", "Faults"
    )

    def __post_init__(self) -> None:
        for name, low, high in (
            ("workers", 3, 200),
            ("minutes", schedule.QUIET / 60, 1e5),
            ("faults_per_hour", 1e-3, 36_000),
            ("every", 1, 1e6),
            ("pace", 0, 60),
            ("silence", 2, 1e6),
            ("baseline_seconds", 0, 1e5),
            ("fault_free_runs", 0, 100),
            ("supervisors", 1, 200),
            ("together", 0, 1),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                option = name.replace("_", "-")
                raise UsageError(f"--{option}: expected {low:g} to {high:g}, found {value:g}")
        if self.minutes * 60 <= schedule.QUIET:
            raise UsageError(
                f"--minutes: expected more than the {schedule.QUIET:g} s at the end that stay free of faults, "
                f"found {self.minutes:g}"
            )
        if self.fault_free_runs == 1:
            raise UsageError(
                "--fault-free-runs: expected 0, or at least 2, which have a standard deviation; found 1"
            )
        link.parse(self.link)
        if self.store not in (None, "etcd"):
            raise UsageError(f"--store: expected etcd, found {self.store!r}")
        if (self.balance == "time") != bool(self.when):
            raise UsageError(
                f"--when and --balance time: expected both or neither, found --balance {self.balance} and "
                f"--when {self.when or 'none'}"
            )
