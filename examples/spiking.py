"""A spiking network of one's own, trained by four workers that average every 8 steps. Needs snntorch.

python examples/spiking.py
"""

from __future__ import annotations

import snntorch
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from swarmstep import Comm, Every, LocalSGD, Synchronizer, simulate
from swarmstep.seeding import generator
from swarmstep.workloads import load

WORKERS, STEPS, BATCH, TIME = 4, 80, 64, 25


class Net(nn.Module):
    """Digits to spikes of ten neurons, [25, B, 10]; each neuron's decay is learned."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.neurons = nn.Linear(64, 10), snntorch.Leaky(beta=0.9 * torch.ones(10), learn_beta=True)

    def forward(self, images: Tensor) -> Tensor:
        current, spikes = self.layer(images.flatten(1)), []
        potential = torch.zeros_like(current)  # a worker's own, of this batch: never synchronized
        for _ in range(TIME):
            spike, potential = self.neurons(current, potential)
            spikes.append(spike)
        self.neurons.reset_mem()  # the module keeps it: let go of this batch's graph
        return torch.stack(spikes)


def train(comm: Comm) -> tuple[float, float]:
    """Return the accuracy on the test digits, and spikes per neuron and time step."""
    digits, model = load("digits"), Net()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    sync = Synchronizer(model, LocalSGD(when=Every(8)), comm)
    for step in range(STEPS):
        drawn = torch.randint(len(digits.train), (BATCH,), generator=generator("batch", step, comm.rank))
        batch = digits.train.take(drawn)
        loss = cross_entropy(model(batch.inputs / 16).sum(0), batch.targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        sync.step(loss)
    sync.finish()
    with torch.no_grad():
        spikes = model(digits.test.inputs / 16)
    return float((spikes.sum(0).argmax(1) == digits.test.targets).double().mean()), float(spikes.mean())


if __name__ == "__main__":
    torch.set_num_threads(1)
    accuracy, rate = simulate(train, WORKERS)[0]
    print(f"test accuracy {accuracy:.3f}; {rate:.3f} spikes per neuron and time step")
