"""Train weights of which 2 in 4 count with 4 workers in this process, and export a plain model with zeros.

python examples/sparse.py
"""

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from swarmstep import Every, Group, LocalSGD, NMCodec, Options, Synchronizer, simulate
from swarmstep.sparse import export, flips, nm


def batch(seed: int, size: int = 32):
    """Points of three rings."""
    generator = torch.Generator().manual_seed(seed)
    ring = torch.randint(3, (size,), generator=generator)
    angle = torch.rand(size, generator=generator) * 6.2832
    radius = ring + 1 + 0.2 * torch.randn(size, generator=generator)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1), ring


def train(comm: Group) -> tuple[float, float, int]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3))
    nm(model, 2, 4)  # the first layer, of two inputs, stays dense
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    sync = Synchronizer(model, LocalSGD(when=Every(8)), comm, Options(codec=NMCodec(2, 4)))
    for step in range(200):
        inputs, targets = batch(1000 * comm.rank + step)
        optimizer.zero_grad()
        loss = cross_entropy(model(inputs), targets)
        loss.backward()
        optimizer.step()
        sync.step(loss)
    sync.finish()
    plain = export(model)
    inputs, targets = batch(-1, 1000)
    accuracy = float((plain(inputs).argmax(1) == targets).float().mean())
    return accuracy, float((plain[2].weight == 0).float().mean()), flips(model)


if __name__ == "__main__":
    torch.set_num_threads(1)
    accuracy, zeros, flipped = simulate(train, workers=4)[0]
    print(f"accuracy {accuracy:.3f} with {zeros:.0%} zeros in the hidden layer; {flipped} flips of masks")
