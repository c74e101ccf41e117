"""The figures of docs/asynchronous.md that are known beforehand, in half a minute.

python benchmarks/asynchronous_oracles.py
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn

from swarmstep.asynchronous import SERVER, AsGrad, Flat, Function, LayUp, Outer, Simulator

SECONDS = (1.0, 2.0, 3.0, 4.0)
ZERO = torch.zeros(1, dtype=torch.float64)


def course(method: AsGrad, seconds: tuple[float, ...], start: float, steps: int) -> np.ndarray:
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
        {"wait": 2},
        {"wait": 4},
        {"ignore": 4},
        {"rule": "staleness"},
    ):
        method = AsGrad(4, own, Outer(0.002 * int(options.get("wait", 1))), **options)
        x = course(method, SECONDS, 0.0, 15_000)[5000:]
        print(f"  {options or 'pure'!s:25} {x.mean():.4f} +- {x.std():.4f}")


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


if __name__ == "__main__":
    torch.set_num_threads(1)
    bias()
    delay()
    push_sum()
