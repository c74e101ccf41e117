"""The figures of docs/asynchronous.md that are known beforehand, and AsGrad's claim, in two minutes.

python benchmarks/asynchronous_oracles.py
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import nn

from swarmstep.asynchronous import (
    PDASGD,
    SERVER,
    AsGrad,
    Direction,
    Flat,
    Function,
    LayUp,
    Method,
    Outer,
    Quorum,
    Simulator,
)
from swarmstep.workloads import load

SECONDS = (1.0, 2.0, 3.0, 4.0)
ZERO = torch.zeros(1, dtype=torch.float64)


def course(method: Method[Any], seconds: tuple[float, ...], start: float, steps: int) -> np.ndarray:
    """Return x after each of the server's first steps."""
    simulator, found = Simulator(method, ZERO + start, seconds), [start]
    while len(found) <= steps:
        simulator.run(events=1)
        if simulator.order[-1].node == SERVER and simulator.states[SERVER].version == len(found):
            found.append(float(simulator.result()))
    return np.array(found)


def bias() -> None:
    print(
        "f_i = (x - i)^2 / 2, i = 0..3, seconds 1..4, lr 0.002 b: x, mean and deviation of steps 5,000 to 15,000"
    )
    own = Function(lambda x, worker, number: x - worker)
    for options in (
        {},
        {"assign": "random"},
        {"assign": "shuffled"},
        {"rule": "rescaled"},
        {"rule": "ringleader"},
        {"wait": 2},
        {"wait": 4},
        {"ignore": 4},
        {"rule": "staleness"},
    ):
        method = AsGrad(4, own, Outer(0.002 * int(options.get("wait", 1))), **options)
        x = course(method, SECONDS, 0.0, 15_000)[5000:]
        print(f"  {options or 'pure'!s:25} {x.mean():.4f} +- {x.std():.4f}")


def late() -> None:
    print("the same, rounds with a quorum (lr 0.01, 1,300 to 4,000 rounds), and directions (momentum 0.5)")
    own, outer = Function(lambda x, worker, number: x - worker), Outer(0.002, 0.5)
    for name, method in {
        "quorum 4": Quorum(4, own, Outer(0.01), 4),
        "quorum 2": Quorum(4, own, Outer(0.01), 2),
        "quorum 2, grace 1.5": Quorum(4, own, Outer(0.01), 2, 1.5),
        "quorum 2, staleness": Quorum(4, own, Outer(0.01), 2, rule="staleness"),
        "quorum 2, rescaled": Quorum(4, own, Outer(0.01), 2, rule="rescaled"),
        "pure, momentum": AsGrad(4, own, outer),
        "pure, shrunk by half": AsGrad(4, own, outer, direction=Direction(0.0, 0.0, 1.0, 1.0, 1.0)),
        "pure, shrunk to nothing": AsGrad(4, own, outer, direction=Direction(0.0, 0.0, 1e9, 1.0, 0.0)),
    }.items():
        steps = 4000 if isinstance(method, Quorum) else 12_000
        x = course(method, SECONDS, 0.0, steps)[steps // 3 :]
        print(f"  {name:25} {x.mean():.4f} +- {x.std():.4f}")


def delay() -> None:
    print("x' = x - eta x[-tau]: the largest stable eta, by bisection, and 2 sin(pi / (2 (2 tau + 1)))")
    for tau in (0, 1, 2, 4, 8):

        def stable(eta: float, tau: int = tau) -> bool:
            method = AsGrad(tau + 1, Function(lambda x, worker, number: x), Outer(eta))
            x = np.abs(course(method, (1.0,) * (tau + 1), 1.0, 300 * (tau + 1)))
            part = len(x) // 5
            return bool(x[-part:].max() < x[part : 2 * part].max())

        low, high = 0.0, 3.0
        for _ in range(12):
            middle = (low + high) / 2
            low, high = (middle, high) if stable(middle) else (low, middle)
        print(f"  tau {tau}: {low:.4f}, {2 * math.sin(math.pi / (2 * (2 * tau + 1))):.4f}")


def push_sum() -> None:
    print("LayUp, 5 workers, lr 0, 2,000 events: distance from the mean of the starts, deviation between workers")
    model = nn.Linear(8, 4).double()
    method = LayUp(5, model, lambda model, worker, step: model(torch.ones(1, 8).double()).sum(), lr=0.0)
    for lost in (0.0, 0.3):
        simulator = Simulator(method, Flat(model).read(), (1.0, 1.0, 2.0, 3.0, 5.0), lost=lost)
        for worker, state in simulator.states.items():
            state.x = torch.randn(36, dtype=torch.float64, generator=torch.Generator().manual_seed(worker))
        mean = torch.stack([state.x for state in simulator.states.values()]).mean(0)
        simulator.run(events=2000)
        x = torch.stack([state.x for state in simulator.states.values()])
        print(
            f"  lost {lost:.0%}: {float((simulator.result() - mean).abs().max()):.1e}, {float(x.std(0).max()):.1e}"
        )


class Bowls(nn.Module):
    """x^2 / 2 for each of some layers of one element."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layers = nn.ParameterList(torch.ones(1, dtype=torch.float64) for _ in range(layers))

    def forward(self) -> torch.Tensor:
        return torch.stack([layer.square().sum() / 2 for layer in self.layers]).sum()


def layers() -> None:
    print("PD-ASGD, 8 layers, forward 1 s, backward 2 s, 2 backward threads: mean delay of the layers, in batches")
    for layerwise in (True, False):
        model = Bowls(8)
        method = PDASGD(2, model, lambda model, worker, step: model(), lr=0.01, layerwise=layerwise)
        simulator = Simulator(method, Flat(model).read(), method.seconds(1.0, 2.0 - 1e-6))
        simulator.run(until=500.0)
        state = simulator.states[0]
        found = [total / writes for total, writes in zip(state.delays, state.writes, strict=True)]
        print(f"  layer-wise {layerwise}: {np.mean(found):.2f}, from {min(found):.2f} to {max(found):.2f}")


def by_label() -> None:
    print("digits by label, 10 workers of 1 to 10 s, softmax regression + 0.1 sum x^2 / (1 + x^2), 500 steps:")
    print("  norm of the gradient, mean of the last 100 steps, of 3 seeds, at the best lr of 2^-1 to 2^-10")
    digits = load("digits")
    inputs = torch.cat(
        [digits.prepare(digits.train.inputs).flatten(1), torch.ones(len(digits.train.targets), 1)], 1
    )
    inputs, targets = inputs.double(), torch.nn.functional.one_hot(digits.train.targets, 10).double()
    own = [digits.train.targets == worker for worker in range(10)]
    parts = [(inputs[mine], targets[mine]) for mine in own]

    def gradient(x: torch.Tensor, worker: int, number: int) -> torch.Tensor:
        inputs, targets = parts[worker]
        loss = inputs.T @ ((inputs @ x.view(-1, 10)).softmax(1) - targets) / len(inputs)
        return loss.flatten() + 0.2 * x / (1 + x * x).square()

    def norm(assign: str, rule: str, lr: float, seed: int) -> float:
        method = AsGrad(10, Function(gradient), Outer(lr), assign, rule, seed=seed)
        simulator = Simulator(method, torch.zeros(inputs.shape[1] * 10, dtype=torch.float64), range(1, 11))
        norms, version = [], 0
        while version < 500:
            simulator.run(events=1)
            if (now := simulator.states[SERVER].version) > version:
                version, x = now, simulator.result()
                if version > 400:
                    norms.append(float(torch.stack([gradient(x, w, 0) for w in range(10)]).mean(0).norm()))
        return float(np.mean(norms))

    for assign, rule in (
        ("pure", "constant"),
        ("random", "constant"),
        ("shuffled", "constant"),
        ("pure", "rescaled"),
    ):
        seeds = range(1 if assign == "pure" else 3)
        found = {lr: [norm(assign, rule, lr, seed) for seed in seeds] for lr in (2.0**-k for k in range(1, 11))}
        lr = min(found, key=lambda lr: np.mean(found[lr]))
        print(f"  {assign:9}{rule:9} {np.mean(found[lr]):.4f} at 2^{math.log2(lr):.0f}, {np.round(found[lr], 4)}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    bias()
    late()
    delay()
    layers()
    push_sum()
    by_label()
