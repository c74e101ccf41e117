"""A recurrent chain that tests sweep over, in this process and in real ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from swarmstep import Comm
from swarmstep.parallel import sweep

SHARE, BATCH, HIDDEN = 4, 3, 5


def problem(workers: int) -> tuple[nn.RNNCell, Tensor, Tensor, Tensor]:
    """Return a cell, inputs [T, B, 2], targets [T, B, 5] and a start that wants a gradient, all float64."""
    torch.manual_seed(workers)
    cell = nn.RNNCell(2, HIDDEN).double()
    inputs = torch.randn(workers * SHARE, BATCH, 2, dtype=torch.float64)
    targets = torch.randn(workers * SHARE, BATCH, HIDDEN, dtype=torch.float64)
    return cell, inputs, targets, torch.randn(BATCH, HIDDEN, dtype=torch.float64, requires_grad=True)


def chain_gradients(comm: Comm, segments: int) -> tuple[Tensor, Tensor, Tensor, int]:
    """Return the states of all workers, the summed gradient of the parameters, that of the start, the sweeps."""
    cell, inputs, targets, start = problem(comm.size)
    own = slice(comm.rank * SHARE, (comm.rank + 1) * SHARE)
    found = sweep(lambda h, x: cell(x, h), start, inputs[own], comm, segments=segments)
    states = torch.stack(found.states)
    back = found.backward(((states - targets[own]) ** 2).sum())
    gradient = torch.cat([p.grad.flatten() for p in cell.parameters() if p.grad is not None])
    summed = comm.mean(gradient)[0] * comm.size
    of_start = comm.broadcast(start.grad if start.grad is not None else torch.zeros_like(start), 0)
    return comm.gather(states.detach()).flatten(0, 1), summed, of_start, max(found.sweeps, back)
