"""What a run is, and how it is carried out: plain data. Importing this does not import torch.

The metadata of a field describes its option on the command line: "help", "metavar" and "group". An option is named
as its field, with hyphens; `settings` is the exception: it is --set.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Literal, get_args

from swarmstep import spec_help
from swarmstep.errors import UsageError
from swarmstep.workloads.defaults import BUILT_IN, Defaults, Optimizer, Sampling, Schedule

Backend = Literal["sim", "gloo", "nccl"]
ElasticMode = Literal["local", "torchft", "torchrun"]
Balance = Literal["off", "batch", "steps", "time"]
Method = Literal["gradient", "ssfn"]
Tunnel = Literal["wireguard"]
Group = Literal["Method", "Data and model", "Training", "Communication", "Run"]

SYNCHRONOUS = "synchronous"  # averages the gradients at every step
DDP = "ddp"  # the same, done by torch's DistributedDataParallel
GRADIENTS = (DDP, "osp", SYNCHRONOUS)  # the methods that synchronize gradients, by default at every step
BASELINES = (DDP, "independent")  # without settings or a trigger
LAYUP = "layup"  # sends at each step
ASYNCHRONOUS = ("asgrad", LAYUP, "quorum")  # without rounds in which all meet
BACKENDS: tuple[Backend, ...] = get_args(Backend)
BALANCES: tuple[Balance, ...] = get_args(Balance)
ELASTIC: tuple[ElasticMode, ...] = get_args(ElasticMode)
FREE = ("backend", "data", "steps", "workers")  # the fields that may differ when a run is resumed


def _about(group: Group, metavar: str | None, text: str) -> dict[str, str | None]:
    """Return the metadata of a field that is an option on the command line."""
    return {"help": text, "metavar": metavar, "group": group}


@dataclass(frozen=True)
class Config:
    """One run. A field that is None and has a default in the workload is filled in by `train.build.resolve`.

    `backend` and `data` do not change the numbers of a run, unless they follow from measured seconds (`balance`,
    a trigger by time); all other fields may.
    """

    workload: str = field(
        metadata=_about("Data and model", "WORKLOAD", f"{', '.join(BUILT_IN)}, or path/to/file.py:workload")
    )
    strategy: str = field(default="swarm", metadata=_about("Method", "NAME", "how the workers synchronize"))
    settings: Mapping[str, str] = field(
        default_factory=dict[str, str],
        metadata=_about("Method", "NAME=VALUE", "a setting of the strategy; may be repeated"),
    )
    when: str | None = field(
        default=None, metadata=_about("Method", "SPEC", f"in place of --every: {spec_help.TRIGGERS}")
    )
    every: int | None = field(default=None, metadata=_about("Method", "N", "local steps between rounds"))
    method: Method = field(
        default="gradient",
        metadata=_about(
            "Method",
            None,
            "how the model is trained: gradient, by steps of an optimizer; ssfn, layer by layer, without any",
        ),
    )
    graph: str | None = field(
        default=None,
        metadata=_about(
            "Method", "SPEC", f"with --method ssfn: who talks to whom: {spec_help.GRAPHS}; without one all sum"
        ),
    )
    workers: int = field(default=4, metadata=_about("Run", "W", "number of workers"))
    shards: str = field(
        default="iid",
        metadata=_about("Data and model", "SPEC", f"which worker holds which examples: {spec_help.SHARDS}"),
    )
    fault: str | None = field(
        default=None, metadata=_about("Run", "SPEC", f"what the last K ranks do wrong: {spec_help.FAULTS}")
    )
    balance: Balance = field(
        default="off",
        metadata=_about(
            "Training",
            None,
            "unequal workers: batch, each takes as many of all workers' examples of a step as it can; steps, as "
            "many of all their steps between rounds; time, as many steps as fit between rounds by the clock "
            "(--when time:SECONDS); off, all take the same",
        ),
    )
    max_batch: str | None = field(
        default=None,
        metadata=_about(
            "Training",
            "B,B,...",
            "with --balance batch: the most examples that each worker's memory holds, such as 64,64,64,16",
        ),
    )
    speeds: str | None = field(
        default=None,
        metadata=_about(
            "Run",
            "T,T,...",
            "for experiments: make the workers unequal, by the relative time that a step takes each, such as "
            "1,1,1,3; real workers sleep, with sim the run's seconds are virtual",
        ),
    )
    jitter: float = field(
        default=0.0,
        metadata=_about(
            "Run",
            "J",
            "for experiments: each step takes up to this part more or less, at random; 0 to below 1",
        ),
    )
    disturb: str | None = field(
        default=None,
        metadata=_about("Run", "SPEC", f"for experiments: a worker is slower for a while: {spec_help.DISTURB}"),
    )
    model: str | None = field(
        default=None, metadata=_about("Data and model", "NAME", "one of the workload's models")
    )
    objective: str | None = field(
        default=None,
        metadata=_about("Data and model", "NAME", "one of the workload's objectives, where it has several"),
    )
    sampling: Sampling | None = field(
        default=None,
        metadata=_about(
            "Data and model",
            None,
            "natural: a worker goes through its examples in random order; balanced: each of its batches has "
            "equally many of every class",
        ),
    )
    steps: int | None = field(default=None, metadata=_about("Training", "N", "local steps of each worker"))
    batch: int | None = field(default=None, metadata=_about("Training", "B", "examples per step and worker"))
    lr: float | None = field(
        default=None, metadata=_about("Training", "LR", "learning rate of the local optimizer")
    )
    optimizer: Optimizer | None = field(default=None, metadata=_about("Training", None, "the local optimizer"))
    proximal: str | None = field(
        default=None,
        metadata=_about(
            "Training",
            "GAMMA,STEPS",
            "proximal stages: gradients pull to the mean weights of the stage before, by the distance / GAMMA; "
            "the first has STEPS steps, each other three times as many at a third of the learning rate",
        ),
    )
    control_variates: bool = field(
        default=False,
        metadata=_about(
            "Training", None, "correct gradients by how this worker's differed from all workers' in the last round"
        ),
    )
    weight_decay: float | None = field(
        default=None, metadata=_about("Training", "X", "weight decay of the local optimizer")
    )
    schedule: Schedule | None = field(default=None, metadata=_about("Training", None, "of the learning rate"))
    warmup: int | None = field(
        default=None, metadata=_about("Training", "N", "first steps, in which the learning rate rises linearly")
    )
    clip: float | None = field(
        default=None,
        metadata=_about(
            "Training", "X", "largest norm of a worker's gradient; longer ones are shortened; 0: none"
        ),
    )
    eval_every: int | None = field(
        default=None, metadata=_about("Training", "N", "local steps between evaluations")
    )
    checkpoint_every: int = field(default=500, metadata=_about("Run", "N", "local steps between checkpoints"))
    seed: int = field(default=0, metadata=_about("Training", "S", "seed of everything random"))
    delay: int = field(
        default=0,
        metadata=_about("Communication", "D", "local steps that are computed while a round is in progress"),
    )
    mix: float | None = field(
        default=None,
        metadata=_about(
            "Communication",
            "A",
            "share of a worker's own weights when a round lands (default: the round's change is added to them)",
        ),
    )
    fragments: int = field(
        default=1, metadata=_about("Communication", "K", "synchronize the model in K parts, one at a time")
    )
    codec: str | None = field(
        default=None,
        metadata=_about("Communication", "SPEC", f"how vectors are encoded on the wire: {spec_help.CODECS}"),
    )
    fast_sums: bool = field(
        default=False,
        metadata=_about(
            "Communication",
            None,
            "let the network choose the order of sums: faster between processes, no longer bitwise equal to sim",
        ),
    )
    until_accuracy: float | None = field(
        default=None,
        metadata=_about(
            "Training", "A", "end at the first evaluation with this test accuracy, above 0 and at most 1"
        ),
    )
    regularizer: str | None = field(
        default=None,
        metadata=_about("Data and model", "SPEC", f"regularize the model: {spec_help.REGULARIZERS}"),
    )
    sparse: str | None = field(
        default=None,
        metadata=_about("Data and model", "SPEC", f"train weights of which N in M count: {spec_help.SPARSE}"),
    )
    elastic: ElasticMode | None = field(
        default=None,
        metadata=_about(
            "Run",
            None,
            "workers may be lost and come back: local, the others go on in the same processes; torchft, the same "
            "with torchft's lighthouse; torchrun, all start again from the last checkpoint",
        ),
    )
    backend: Backend = field(
        default="sim",
        metadata=_about("Run", None, "sim: all workers in this process; gloo, nccl: a process for each worker"),
    )
    data: str | None = field(
        default=None,
        metadata=_about(
            "Data and model",
            "DIR",
            "data folder (default: SWARMSTEP_DATA, or ./data); for text and imbalanced a file of your own",
        ),
    )
    optimizer_state: str = field(
        default="local",
        metadata=_about(
            "Training", "SPEC", f"what rounds do with the local optimizers' states: {spec_help.OPTIMIZER_STATES}"
        ),
    )
    eager: bool = field(
        default=False,
        metadata=_about(
            "Communication",
            None,
            "with --delay: while a round is in progress go on from one's own part of the outer step (diloco)",
        ),
    )

    @property
    def by_gradients(self) -> bool:
        """Whether the workers synchronize gradients, and not weights."""
        return self.strategy in GRADIENTS

    @property
    def title(self) -> str:
        """What the run is, in a line."""
        return f"{self.workload} {self.means}, {self.workers} workers, {self.backend}"

    @property
    def layerwise(self) -> bool:
        """Whether the model is trained layer by layer, without steps and rounds."""
        return self.method != "gradient"

    @property
    def means(self) -> str:
        """By what the model is trained: the strategy, or a method without one."""
        return self.method if self.layerwise else self.strategy

    @property
    def asynchronous(self) -> bool:
        """Whether nobody waits: the method has no rounds in which all meet."""
        return self.strategy in ASYNCHRONOUS

    @property
    def nodes(self) -> int:
        """How many processes an asynchronous run has: the workers, and the server of methods that have one."""
        return self.workers + (self.strategy != LAYUP)

    @property
    def training(self) -> Defaults:
        """The settings of the local training; raises UsageError where one is out of its range or missing."""
        return Defaults(**{f.name: getattr(self, f.name) for f in fields(Defaults)})


@dataclass(frozen=True)
class Invocation:
    """One call of ``swarmstep train`` apart from its Config: files, other machines, timeouts.

    Raises:
        UsageError: a value is out of its range, or does not go with another.
    """

    out: str | None = field(
        default=None, metadata=_about("Run", "DIR", "folder for the run's files (default: a new one below runs/)")
    )
    no_files: bool = field(default=False, metadata=_about("Run", None, "write no files at all"))
    resume: str | None = field(
        default=None,
        metadata=_about(
            "Run", "DIR", "go on with the run in DIR, with its settings; with --steps also once it is done"
        ),
    )
    stop_at: int | None = field(
        default=None, metadata=_about("Run", "STEP", "stop there with a checkpoint, as on Ctrl-C")
    )
    listen: str | None = field(
        default=None,
        metadata=_about(
            "Run",
            "HOST:PORT",
            "with --elastic local or torchft, or asynchronous methods: let other machines join at this address of "
            "this machine; needs a secret (docs/security.md)",
        ),
    )
    here: int | None = field(
        default=None,
        metadata=_about(
            "Run",
            "K",
            "with --listen and an asynchronous method: so many of the workers run on this machine, beside the "
            "server; the others join (default: all)",
        ),
    )
    join: str | None = field(
        default=None,
        metadata=_about(
            "Run",
            "HOST:PORT",
            "give workers to the run that listens there, at any time, with its settings; --data, --workers and "
            "--out are this machine's own",
        ),
    )
    pace: float = field(
        default=0.0,
        metadata=_about(
            "Run", "SECONDS", "least duration of a local step; longer for workers that --speeds slows"
        ),
    )
    silence: float | None = field(
        default=None,
        metadata=_about(
            "Run",
            "SECONDS",
            "a worker that gives no sign of life for this long is lost (default: 30; asynchronous methods: 10; "
            "with --elastic local or torchft: 5)",
        ),
    )
    patience: float = field(
        default=1800.0, metadata=_about("Run", "SECONDS", "how long to wait for a worker that is alive")
    )
    track: str | None = field(
        default=None,
        metadata=_about(
            "Run", "NAME,...", "show the numbers elsewhere, too: tensorboard, wandb or mlflow (docs/watching.md)"
        ),
    )

    store: str | None = field(
        default=None,
        metadata=_about(
            "Run",
            "URL",
            "with --elastic local: keep the store in etcd://HOST:PORT,.../RUN and take part in RUN; give the same "
            "command on each machine (docs/reliability.md)",
        ),
    )

    tunnel: Tunnel | None = field(
        default=None,
        metadata=_about(
            "Run",
            None,
            "with --listen: encrypt what the machines send each other; root on each, and wireguard-tools "
            "(docs/security.md)",
        ),
    )

    def __post_init__(self) -> None:
        for name, low in (("silence", 2.0), ("patience", 1.0), ("pace", 0.0)):  # a heartbeat comes every 0.5 s
            value = getattr(self, name)
            if value is not None and not low <= value <= 1e6:
                raise UsageError(f"--{name}: expected {low:g} to 1e6 seconds, found {value:g}")
        if self.resume and self.out:
            raise UsageError("--resume and --out: a resumed run stays in its folder; give one of them")
        if self.no_files and (self.out or self.resume or self.track):
            raise UsageError("--no-files: goes with neither --out, --resume nor --track")
        if not self.listen and (self.here is not None or self.tunnel):
            option = "--tunnel" if self.here is None else "--here"
            raise UsageError(f"{option}: goes with --listen, which lets other machines bring the other workers")
        if self.store and (self.join or self.listen):
            raise UsageError("--store: goes with neither --listen nor --join; give --store on each machine")
        if self.join and (self.resume or self.listen):
            raise UsageError("--join: goes with neither --listen nor --resume, which are for the first machine")
