"""Train without gradients, from examples that stay where they are: four workers on a ring, each with its digits.

    python examples/layerwise.py

Worker 0 holds the zeros to twos, worker 1 the threes and fours, and so on; each talks to two neighbours only.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from swarmstep import Group, simulate
from swarmstep.layerwise import SSFN, SSFNSettings, fit, ring
from swarmstep.workloads import load

WORKERS = 4

digits = load("digits")
inputs, targets = digits.prepare(digits.train.inputs).flatten(1), one_hot(digits.train.targets, 10)
shard = digits.train.targets * WORKERS // 10


def main(width: int = 50, layers: int = 2) -> None:
    settings = SSFNSettings(width=width, layers=layers, tolerance=1e-6)

    def worker(comm: Group) -> SSFN:
        mine = shard == comm.rank
        return fit(settings, inputs[mine], targets[mine], comm, graph=ring(comm.size, 2))

    networks = simulate(worker, WORKERS)
    central = simulate(lambda comm: fit(settings, inputs, targets, comm), 1)[0]
    tested = digits.prepare(digits.test.inputs)
    expected = central(tested)

    def accuracy(outputs: Tensor) -> float:
        return (outputs.argmax(1) == digits.test.targets).double().mean().item()

    first, last = networks[0](tested), networks[-1](tested)
    print(f"test accuracy: worker 0 {accuracy(first):.4f}, worker {WORKERS - 1} {accuracy(last):.4f}")
    print(f"with all examples in one place: {accuracy(expected):.4f}")
    print(f"largest difference of an output: {float((first - expected).abs().max()):.1e}")
    different = int((first.argmax(1) != expected.argmax(1)).sum())
    print(f"decided differently than central training: {different} of {len(expected)}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
