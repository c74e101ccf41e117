"""Threads that train shared weights without locks (Hogwild): whether they help on this machine.

Each thread has its own gradients; the weights are the same memory. Steps a second, and the test loss after the
same number of steps, of an MLP on the digits and of a wide one on random numbers:

python benchmarks/hogwild.py
"""

from __future__ import annotations

import copy
import sys
import threading
import time

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from swarmstep.seeding import generator
from swarmstep.workloads import load

STEPS, BATCH, LR = 1200, 32, 0.05


def train(model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor, threads: int, steps: int) -> float:
    """Take `steps` steps of SGD in all, by so many threads; return the seconds."""
    replicas = [copy.deepcopy(model) for _ in range(threads)]
    for replica in replicas:
        for own, shared in zip(replica.parameters(), model.parameters(), strict=True):
            own.data = shared.data

    def work(thread: int) -> None:
        replica = replicas[thread]
        for step in range(thread, steps, threads):
            batch = torch.randint(len(inputs), (BATCH,), generator=generator("hogwild", step))
            replica.zero_grad()
            cross_entropy(replica(inputs[batch]), targets[batch]).backward()
            with torch.no_grad():
                for parameter in replica.parameters():
                    assert parameter.grad is not None
                    parameter.sub_(parameter.grad, alpha=LR)

    workers = [threading.Thread(target=work, args=[thread]) for thread in range(threads)]
    start = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return time.perf_counter() - start


def main() -> None:
    torch.set_num_threads(1)
    digits = load("digits")
    inputs, targets = digits.prepare(digits.train.inputs), digits.train.targets
    tested, answers = digits.prepare(digits.test.inputs), digits.test.targets
    wide = torch.randn(2000, 512, generator=generator("wide"))
    labels = torch.randint(10, (2000,), generator=generator("labels"))
    for threads in (1, 2, 1, 2):
        torch.manual_seed(0)
        model = digits.models["mlp"]()
        seconds = train(model, inputs, targets, threads, STEPS)
        loss = cross_entropy(model(tested), answers).item()
        large = nn.Sequential(
            nn.Linear(512, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10)
        )
        slow = train(large, wide, labels, threads, 100)
        print(
            f"{threads} threads: {STEPS / seconds:.0f} steps/s, test loss {loss:.3f}; "
            f"1.6 million parameters: {100 / slow:.0f} steps/s"
        )
        sys.stdout.flush()


if __name__ == "__main__":
    main()
