"""A plain PyTorch loop with two added lines; the same file in one process, in many, and elastic.

python examples/train.py                                   # 4 workers inside this process
torchrun --nproc-per-node 2 examples/train.py              # 2 real processes
torchrun --nnodes 2 --nproc-per-node 2 --rdzv-backend c10d --rdzv-endpoint HOST:29400 examples/train.py
swarmstep run --workers 2 examples/train.py                # 2 processes that may be lost, and are replaced
"""

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from swarmstep import Every, Group, InformedSwarm, Options, Synchronizer, run


def batch(step: int, rank: int, size: int):
    """Return a worker's batch: points of three rings, its own share of what all workers draw at this step."""
    generator = torch.Generator().manual_seed(step)
    ring = torch.randint(3, (32 * size,), generator=generator)
    angle = torch.rand(32 * size, generator=generator) * 6.2832
    radius = ring + 1 + 0.2 * torch.randn(32 * size, generator=generator)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)[rank::size], ring[rank::size]


def probe(module: nn.Module, step: int) -> torch.Tensor:
    """Return the loss of each held-out example: by it the swarm finds out whom to trust."""
    inputs, targets = batch(10**6, 0, 1)
    return cross_entropy(module(inputs), targets, reduction="none")


def train(comm: Group) -> float:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    options = Options(probe=probe, stateful={"optimizer": optimizer})  # what a worker that joins takes of another
    with Synchronizer(model, InformedSwarm(when=Every(16)), comm, options) as sync:  # first added line
        for step in sync.until(320):
            inputs, targets = batch(step, sync.comm.rank, sync.comm.size)
            loss = cross_entropy(model(inputs), targets)
            loss.backward()
            optimizer.step()
            sync.step(loss)  # second added line, before zero_grad
            optimizer.zero_grad()
    inputs, targets = batch(10**6 + 1, 0, 8)
    return float((model(inputs).argmax(1) == targets).float().mean())


if __name__ == "__main__":
    torch.set_num_threads(1)
    accuracy = run(train, workers=4)
    if accuracy is not None:
        print(f"accuracy {accuracy:.3f}")
