"""Four workers, one of which needs three times as long for a step: rounds, and methods in which nobody waits.

Virtual time until the model has a test loss of 0.2 on the digits, in a simulator, in one process:

python examples/asynchronous.py
"""

from __future__ import annotations

from statistics import mean

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from swarmstep.asynchronous import AsGrad, Displacement, Flat, LayUp, Method, Outer, Quorum, Simulator
from swarmstep.seeding import generator, mix
from swarmstep.workloads import load

SECONDS = (1.0, 1.0, 1.0, 3.0)  # that each worker needs for a step
WORKERS, STEPS, BATCH, LR = len(SECONDS), 8, 32, 0.05
TARGET, LONGEST, SEEDS = 0.2, 1200.0, range(3)

digits = load("digits")
inputs, targets = digits.prepare(digits.train.inputs), digits.train.targets
tested, answers = digits.prepare(digits.test.inputs), digits.test.targets


def methods(model: nn.Module, seed: int) -> dict[str, Method]:
    """Return rounds, asynchronous DiLoCo without and with momentum, a quorum, and LayUp; nothing is tuned."""

    def loss(model: nn.Module, worker: int, step: int) -> Tensor:
        """The loss of a batch from this worker's quarter of the examples."""
        drawn = torch.randint(len(inputs) // WORKERS, (BATCH,), generator=generator(seed, worker, step))
        batch = drawn * WORKERS + worker
        return cross_entropy(model(inputs[batch]), targets[batch])

    work = Displacement(model, loss, STEPS, lambda ps: torch.optim.SGD(ps, lr=LR, momentum=0.9))
    return {
        "rounds: the mean, when all have come": AsGrad(WORKERS, work, Outer(lr=1.0), wait=WORKERS),
        "asynchronous": AsGrad(WORKERS, work, Outer(lr=1 / WORKERS)),
        "rounds with a quorum of three": Quorum(WORKERS, work, Outer(lr=1.0), quorum=3, grace=1.0),
        "asynchronous, stale ones count less": AsGrad(WORKERS, work, Outer(lr=1.0), rule="staleness"),
        "asynchronous, rescaled": AsGrad(WORKERS, work, Outer(lr=1 / WORKERS), rule="rescaled"),
        "asynchronous, delayed Nesterov": AsGrad(WORKERS, work, Outer(lr=0.7, momentum=0.5, every=WORKERS)),
        "LayUp, plain SGD": LayUp(WORKERS, model, loss, lr=4 * LR, seed=seed),
    }


@torch.no_grad()
def loss_of(model: nn.Module) -> float:
    return cross_entropy(model(tested), answers).item()


def run(name: str, seed: int) -> tuple[float, float]:
    """Return virtual seconds to the target, and the share of the workers' time in which they computed."""
    torch.manual_seed(mix(seed))
    model = digits.models["mlp"]()
    method, flat = methods(model, seed)[name], Flat(model)
    simulator = Simulator(method, flat.read(), SECONDS)
    while simulator.now < LONGEST:
        simulator.run(until=simulator.now + STEPS)
        flat.write(simulator.result())
        if loss_of(model) <= TARGET:
            break
    steps = [event.node for event in simulator.order if event.kind == "step"]
    computed = sum(SECONDS[worker] * method.steps for worker in steps)
    return simulator.now, computed / (WORKERS * simulator.now)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(f"virtual seconds to a test loss of {TARGET}, means of {len(SEEDS)} seeds; a step takes {SECONDS} s")
    for name in methods(digits.models["mlp"](), 0):
        found = [run(name, seed) for seed in SEEDS]
        times = ", ".join(f"{time:.0f}" for time, _ in found)
        print(f"{name:40}{mean(t for t, _ in found):6.0f} s ({times}), {mean(b for _, b in found):4.0%} computing")
