"""A training loop of one's own whose workers may be lost and come back; the others go on.

swarmstep run --workers 4 examples/elastic.py     # then kill -9 one of the processes
"""

import time

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from swarmstep import Every, InformedSwarm, Membership, Options, Round, Synchronizer

STEPS = 480


def batch(step: int, rank: int, size: int):
    """Return a worker's batch: points of three rings, its own share of what all workers draw at this step."""
    generator = torch.Generator().manual_seed(step)
    ring = torch.randint(3, (32 * size,), generator=generator)[rank::size]
    angle = torch.rand(32 * size, generator=generator)[rank::size] * 6.2832
    radius = ring + 1 + 0.2 * torch.randn(32 * size, generator=generator)[rank::size]
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1), ring


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    members = Membership.from_env()
    model = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    # A worker that joins takes weights, swarm state, the optimizer's state and the count of steps from another.
    options = Options(stateful={"optimizer": optimizer})
    sync = Synchronizer(model, InformedSwarm(when=Every(16)), members.join(), options)
    while sync.steps < STEPS:  # not a range: a newcomer starts where the others are
        inputs, targets = batch(sync.steps, sync.comm.rank, sync.comm.size)
        loss = cross_entropy(model(inputs), targets)
        loss.backward()
        optimizer.step()
        event = sync.step(loss)
        optimizer.zero_grad()
        if isinstance(event, Round) and event.decision.stop:
            break  # Ctrl-C, at the same round for all
        time.sleep(0.02)  # a larger model takes its time
        if isinstance(event, Round) and sync.comm.rank == 0 and event.number % 10 == 0:
            print(f"round {event.number}: {', '.join(event.members)}", flush=True)
    sync.finish()
    members.end()
    inputs, targets = batch(STEPS, 0, 8)
    accuracy = float((model(inputs).argmax(1) == targets).float().mean())
    members.conclude(lambda: print(f"{sync.rounds} rounds, accuracy {accuracy:.3f}"))
    members.leave()


if __name__ == "__main__":
    main()
