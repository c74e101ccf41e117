"""A plain PyTorch loop with one added line; the same file in one process, in many, and on many machines.

python examples/train.py                                   # 4 workers inside this process
torchrun --nproc-per-node 2 examples/train.py              # 2 real processes
torchrun --nnodes 2 --nproc-per-node 2 --rdzv-backend c10d --rdzv-endpoint HOST:29400 examples/train.py
"""

import os

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from swarmstep import DistComm, Every, Group, InformedSwarm, Options, Synchronizer, simulate


def batches(rank: int, size: int, steps: int):
    """Yield this worker's batches: points of three rings, each worker with examples of its own."""
    generator = torch.Generator().manual_seed(1000 + rank)
    for _ in range(steps):
        ring = torch.randint(3, (32,), generator=generator)
        angle = torch.rand(32, generator=generator) * 6.2832
        radius = ring + 1 + 0.2 * torch.randn(32, generator=generator)
        yield torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1), ring


def held_out():
    """Return examples that nobody trains on, the same for all workers."""
    return next(batches(rank=-2, size=1, steps=1))


def probe(module: nn.Module, step: int) -> torch.Tensor:
    """Return the loss of each held-out example: by it the swarm finds out whom to trust."""
    inputs, targets = held_out()
    return cross_entropy(module(inputs), targets, reduction="none")


def train(comm: Group) -> float:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    sync = Synchronizer(model, InformedSwarm(when=Every(16)), comm, Options(probe=probe))
    for inputs, targets in batches(comm.rank, comm.size, steps=320):
        loss = cross_entropy(model(inputs), targets)
        loss.backward()
        optimizer.step()
        sync.step(loss)  # the one added line, before zero_grad
        optimizer.zero_grad()
    sync.finish()  # loads the result
    inputs, targets = next(batches(-1, comm.size, steps=1))
    return float((model(inputs).argmax(1) == targets).float().mean())


if __name__ == "__main__":
    torch.set_num_threads(1)
    if "RANK" in os.environ:  # started by torchrun
        comm = DistComm.from_env()
        accuracy = train(comm)
        if comm.rank == 0:
            print(f"{comm.size} processes: accuracy {accuracy:.3f}")
        comm.close()
    else:
        accuracy = simulate(train, workers=4)[0]
        print(f"4 workers in this process: accuracy {accuracy:.3f}")
