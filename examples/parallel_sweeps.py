"""A recurrent network over 4 workers, each with a quarter of the time steps, trained by sweeps in both directions.

python examples/parallel_sweeps.py
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from swarmstep import Comm, simulate
from swarmstep.parallel import sweep
from swarmstep.seeding import generator

WORKERS, LENGTH, BATCH, HIDDEN = 4, 64, 16, 32
STEPS, SEGMENTS, TOLERANCE = 100, 4, 1e-4  # 16 segments in all: at most 16 sweeps, exact by then


def batch(step: int) -> tuple[Tensor, Tensor]:
    """Return bits [T, B, 1], and for each time which is more frequent among the last five."""
    bits = torch.randint(2, (LENGTH + 4, BATCH, 1), generator=generator("bits", step)).float()
    return bits[4:], (bits.unfold(0, 5, 1).sum(-1) > 2).float()


def train(comm: Comm) -> list[tuple[float, int, int]]:
    """Return for each step the loss of all workers, and the sweeps forward and backward."""
    torch.manual_seed(0)  # the same weights on all workers
    cell, head = nn.RNNCell(1, HIDDEN), nn.Linear(HIDDEN, 1)
    parameters = [*cell.parameters(), *head.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=1e-2)
    own = slice(comm.rank * LENGTH // WORKERS, (comm.rank + 1) * LENGTH // WORKERS)
    boundary, history = torch.zeros(BATCH, HIDDEN), []
    for step in range(STEPS):
        inputs, targets = (x[own] for x in batch(step))
        found = sweep(lambda h, x: cell(x, h), boundary, inputs, comm, segments=SEGMENTS, tolerance=TOLERANCE)
        outputs = head(torch.stack(found.states))
        loss = nn.functional.binary_cross_entropy_with_logits(outputs, targets, reduction="sum")
        optimizer.zero_grad()
        back = found.backward(loss)
        for parameter in parameters:  # what the steps of all workers contribute
            parameter.grad = comm.mean(parameter.grad)[0] * comm.size / (LENGTH * BATCH)
        optimizer.step()
        total = float(comm.gather(loss.detach().double()).sum()) / (LENGTH * BATCH)
        history.append((total, found.sweeps, back))
    return history


if __name__ == "__main__":
    torch.set_num_threads(1)
    for step, (loss, forward, backward) in enumerate(simulate(train, WORKERS)[0]):
        if step % 10 == 9:
            print(f"step {step + 1}: loss {loss:.3f}; {forward} sweeps forward, {backward} backward, not {LENGTH}")
