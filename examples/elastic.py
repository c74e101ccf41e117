"""A training loop of one's own whose workers may be lost and come back; the others go on.

swarmstep run --workers 4 examples/elastic.py     # then kill -9 one of the processes

examples/train.py runs like this, too, but is over before anyone can kill it; this one says who is there.
"""

import time

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from train import batch

from swarmstep import Every, Group, InformedSwarm, Options, Round, Synchronizer, run


def train(comm: Group) -> float:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    # A worker that joins takes weights, swarm state, the optimizer's state and the count of steps from another.
    options = Options(stateful={"optimizer": optimizer})
    with Synchronizer(model, InformedSwarm(when=Every(16)), comm, options) as sync:
        for step in sync.until(480):
            inputs, targets = batch(step, sync.comm.rank, sync.comm.size)
            loss = cross_entropy(model(inputs), targets)
            loss.backward()
            optimizer.step()
            event = sync.step(loss)
            optimizer.zero_grad()
            time.sleep(0.02)  # a larger model takes its time
            if isinstance(event, Round) and sync.comm.rank == 0 and event.number % 10 == 0:
                print(f"{event}: {', '.join(event.members)}", flush=True)
    inputs, targets = batch(480, 0, 8)
    return float((model(inputs).argmax(1) == targets).float().mean())


if __name__ == "__main__":
    torch.set_num_threads(1)
    accuracy = run(train)
    if accuracy is not None:
        print(f"accuracy {accuracy:.3f}")
