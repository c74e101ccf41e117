"""Learn keep rates and weights of low rank from few examples with 4 workers in this process; send factors.

python examples/localdrop.py
"""

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from swarmstep import Every, Group, LocalSGD, LowRank, Options, Synchronizer, simulate
from swarmstep.regularizers import LocalDrop


def examples(seed: int, size: int):
    """Points of three rings."""
    generator = torch.Generator().manual_seed(seed)
    ring = torch.randint(3, (size,), generator=generator)
    angle = torch.rand(size, generator=generator) * 6.2832
    radius = ring + 1 + 0.4 * torch.randn(size, generator=generator)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1), ring


def train(comm: Group) -> tuple[float, dict[str, float]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3))
    drop, lr = LocalDrop(lam=0.03, head=3, every=10), 0.05
    drop.prepare(model)
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9)
    sync = Synchronizer(model, LocalSGD(when=Every(8)), comm, Options(codec=LowRank(2)))
    inputs, targets = examples(comm.rank, 60)
    for step in range(1, 201):
        optimizer.zero_grad()
        loss = cross_entropy(model(inputs), targets)
        loss.backward()
        optimizer.step()
        sync.step(loss)
        drop.after_step(model, lr, step)
    sync.finish()
    plain, (inputs, targets) = drop.finished(model), examples(-1, 1000)
    accuracy = float((plain(inputs).argmax(1) == targets).float().mean())
    return accuracy, dict(drop.metrics(model))


if __name__ == "__main__":
    torch.set_num_threads(1)
    accuracy, found = simulate(train, workers=4)[0]
    print(f"accuracy {accuracy:.3f}, mean keep rate {found['keep_rate']:.2f}, mean rank {found['rank']:.1f}")
