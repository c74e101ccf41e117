"""Small models, data and strategies that many tests use."""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn

from swarmstep import STRATEGIES, Comm, Every, Never, Options, Strategy, Synchronizer, Warmup, When, fault_points
from swarmstep.runtime.flat import Flat
from swarmstep.seeding import generator, mix
from swarmstep.signal import Layout, Signal

BATCH = 6
LR = 0.1

# Besides each strategy's defaults, the options that change what a round does.
OPTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "gasloc": {"factored": {"graph": "ring", "overlapped": "exponential"}},
    "hierarchical": {"across": {"local_size": 1, "outer_every": 1}},  # for any W
    "pso-ps": {
        "historical": {"best": "historical"},
        "decay": {"best": "historical", "best_decay": 0.5},
        "vector": {"random": "vector"},
        "weight": {"random": "weight"},
        "none": {"random": "none"},
        "probe": {"fitness": "probe"},
        "mean": {"outcome": "mean"},
        "clamp": {"clamp": 0.01},
        "constriction": {"constriction": True, "cognitive": 2.05, "social": 2.05},
    },
}

# Defaults that a model of a few dozen weights would hardly notice.
SMALL: dict[str, dict[str, Any]] = {
    "sparta": {"stride": 3},
    "sparta-diloco": {"stride": 3, "outer_every": 2},
}


def variants() -> dict[str, Strategy]:
    """Return every strategy, as it is and with each of its `OPTIONS`."""
    found = {name: cls(**SMALL.get(name, {})) for name, cls in STRATEGIES.items()}
    for name, options in OPTIONS.items():
        found |= {f"{name}:{label}": STRATEGIES[name](**values) for label, values in options.items()}
    return found


VARIANTS = variants()
# The strategies by name that synchronize weights; only those go with delays, fragments and warm-ups.
FOR_WEIGHTS = [name for name in STRATEGIES if STRATEGIES[name].target == "weights"]


class Count(NamedTuple):
    """What a vote remembers: how often it was asked, and the sum of the losses it saw."""

    asked: Tensor
    total: Tensor


@final
@dataclasses.dataclass(frozen=True)
class Vote(When[Count]):
    """A voting trigger for tests: a worker wishes a round when its loss exceeds the mean of what it has seen."""

    factor: float = 1.0

    @property
    def voting(self) -> bool:
        return True

    def init(self, layout: Layout, size: int) -> Count:
        return Count(torch.zeros((), dtype=torch.int64), torch.zeros((), dtype=torch.float64))

    def due(self, state: Count, signal: Signal) -> bool:
        loss = signal.loss()
        if math.isinf(loss):  # no step has been counted since the last round
            return False
        state.asked.add_(1)
        state.total.add_(loss)
        return bool(loss > self.factor * float(state.total / state.asked))


TRIGGERS: dict[str, When] = {
    "every-1": Every(1),
    "every-3": Every(3),
    "never": Never(),
    "vote": Vote(),
}
TIMINGS = [*TRIGGERS, "warm-up"]


def timed(strategy: Strategy, timing: str) -> Strategy:
    """Return the strategy with one of the `TRIGGERS`, or behind a warm-up."""
    if timing == "warm-up":
        return Warmup(dataclasses.replace(strategy, when=Every(3)), 4)
    return dataclasses.replace(strategy, when=TRIGGERS[timing])


def network(seed: int = 0) -> nn.Module:
    """Return a small network with BatchNorm and dropout, so that buffers and random states count."""
    torch.default_generator.manual_seed(seed)  # manual_seed: a millisecond, for all kinds of devices
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3))


def batch(seed: int, step: int, rank: int) -> tuple[Tensor, Tensor]:
    """Return inputs and labels of one step of one worker; each rank has a distribution of its own."""
    g = generator(seed, step, rank, "batch")
    inputs = torch.randn(BATCH, 5, generator=g) + 0.3 * rank
    return inputs, torch.randint(0, 3, (BATCH,), generator=g)


def probe(model: nn.Module, step: int) -> Tensor:
    """The losses of the examples of one batch."""
    inputs, labels = batch(99, 0, 0)
    return nn.functional.cross_entropy(model(inputs), labels, reduction="none")


def options(seed: int = 0, **given: Any) -> Options:
    return Options(seed=seed, **{"probe": probe, "probe_cost": 0.1, **given})


class Momentum:
    """SGD with momentum; torch's own would import its compiler, which takes seconds in every process."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        self.velocities = [torch.zeros_like(p) for p in self.parameters]

    @property
    def state(self) -> dict[Tensor, dict[str, Tensor]]:
        return {p: {"momentum_buffer": v} for p, v in zip(self.parameters, self.velocities, strict=True)}

    @torch.no_grad()
    def step(self) -> None:
        for p, v in zip(self.parameters, self.velocities, strict=True):
            assert p.grad is not None
            p.sub_(v.mul_(0.9).add_(p.grad), alpha=LR)

    def state_dict(self) -> dict[str, Any]:
        return {"velocities": [v.clone() for v in self.velocities]}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        for v, value in zip(self.velocities, saved["velocities"], strict=True):
            v.copy_(value)


class Trainer:
    """A plain training loop with the one added line; dropout is reseeded at each step, as the design asks."""

    def __init__(self, strategy: Strategy, comm: Comm, seed: int = 0, **given: Any) -> None:
        self.model = network(seed + comm.rank)  # the Synchronizer takes rank 0's
        self.optimizer = Momentum(self.model.parameters())
        self.comm, self.seed, self.done = comm, seed, 0
        self.sync = Synchronizer(self.model, strategy, comm, options(seed, **given))

    @property
    def weight(self) -> float:
        """That of the present step."""
        return 1.0

    def backward(self) -> Tensor:
        """Compute the gradients of the next step and return its loss."""
        self.done += 1
        torch.default_generator.manual_seed(mix(self.seed, self.done, self.comm.rank))
        inputs, labels = batch(self.seed, self.done, self.comm.rank)
        loss = nn.functional.cross_entropy(self.model(inputs), labels)
        self.model.zero_grad()
        loss.backward()
        return loss

    def local_step(self) -> Tensor:
        """Do one optimizer step and return its loss."""
        loss = self.backward()
        self.sync.reduce(LR, self.weight)
        self.optimizer.step()
        return loss

    def step(self) -> Any:
        return self.sync.step(self.local_step(), LR, self.weight)

    def weights(self) -> Tensor:
        return Flat(self.model).read()

    def gradient(self) -> Tensor:
        return Flat(self.model).gradient()

    def save(self) -> bytes:
        """Return everything needed to go on, through torch.save."""
        parts = {"model": self.model, "optimizer": self.optimizer, "sync": self.sync}
        file = io.BytesIO()
        torch.save({"done": self.done, **{name: part.state_dict() for name, part in parts.items()}}, file)
        return file.getvalue()

    def load(self, data: bytes) -> None:
        saved = torch.load(io.BytesIO(data), weights_only=True)
        self.done = saved["done"]
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.sync.load_state_dict(saved["sync"])


def before_rounds(strike: Callable[[Tensor, int], object]) -> AbstractContextManager[None]:
    """Call strike(x, step) with this worker's parameters before each of its rounds; it may change them."""

    def hook(point: str, **what: Any) -> None:
        if point == fault_points.ROUND_OPENED:
            strike(what["x"], what["step"])

    return fault_points.interfering(hook)


UNEVEN = (1, 2, 3)  # steps between rounds, of each rank


class WeightedTrainer(Trainer):
    """The same with 1 to 3 examples a step."""

    @property
    def weight(self) -> float:
        return 1.0 + (self.comm.rank + self.done) % 3


class Run(NamedTuple):
    """What a worker's run left: the weights after each step and after finish, and the states at the end."""

    weights: list[Tensor]
    state: list[dict[str, Tensor]]  # of each fragment
    trigger: list[dict[str, Tensor]]
    rounds: list[int]
    traffic: tuple[int, int]


def run(comm: Comm, strategy: Strategy, steps: int, resume: int = 0, **given: Any) -> Run:
    """Train; each `resume` steps, if any, everything is thrown away and rebuilt from its checkpoint."""
    trainer = Trainer(strategy, comm, **given)
    weights, rounds = [trainer.weights()], []
    for _ in range(steps):
        if trainer.step():
            rounds.append(trainer.done)
        weights.append(trainer.weights())
        if resume and trainer.done % resume == 0:
            saved = trainer.save()
            trainer = Trainer(strategy, comm, **given)
            trainer.load(saved)
    trainer.sync.finish()
    weights.append(trainer.weights())
    saved = trainer.sync.state_dict()["fragments"]
    traffic = trainer.sync.bytes_sent, trainer.sync.bytes_received
    return Run(weights, [part["state"] for part in saved], [part["trigger"] for part in saved], rounds, traffic)


def weighted_run(comm: Comm, strategy: Strategy, resume: bool = False) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Train 3 rounds, in each of which a rank takes its number of `UNEVEN` steps; return weights and state.

    With `resume`, everything is thrown away and rebuilt from its checkpoint once between two rounds, on each rank
    after another number of steps.
    """
    trainer, n = WeightedTrainer(strategy, comm), UNEVEN[comm.rank]
    weights = [trainer.weights()]
    for _ in range(3 * n):
        trainer.step()
        weights.append(trainer.weights())
        rounds, since = divmod(trainer.done, n)
        if resume and 0 < rounds < 3 and since == min(rounds, n - 1):
            saved = trainer.save()
            trainer = WeightedTrainer(strategy, comm)
            trainer.load(saved)
    trainer.sync.finish()
    weights.append(trainer.weights())
    return weights, trainer.sync.state_dict()["fragments"][0]["state"]


def same(a: Any, b: Any) -> bool:
    """Whether two nests of tensors, lists, dicts and numbers are equal bitwise (NaN equals itself)."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and a.shape == b.shape and bits(a) == bits(b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def bits(x: Tensor) -> bytes:
    return (
        x.detach().cpu().clone(memory_format=torch.contiguous_format).view(-1).view(torch.uint8).numpy().tobytes()
    )
