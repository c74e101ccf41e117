"""How good a model is: mean loss and accuracy on a set of examples."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from swarmstep.comm.base import Comm
from swarmstep.errors import UsageError
from swarmstep.workloads import Examples, Workload

BATCH = 500


class Score(NamedTuple):
    """Mean loss, in the loss's own unit, and accuracy, 0 to 1 (NaN where it has no meaning)."""

    loss: float
    accuracy: float


def evaluate(model: nn.Module, workload: Workload, examples: Examples, comm: Comm, *, alike: bool) -> Score:
    """Return the score of the workers' models, the same on all ranks. Collective.

    Args:
        model: this worker's; run in eval mode, which it is left in.
        workload: how to prepare and judge.
        examples: all of them, the same on all ranks.
        comm: the group.
        alike: all ranks have the same model, so each judges a part; else the mean of the workers' own scores.
    """
    part = slice(comm.rank, None, comm.size) if alike else slice(None)
    inputs, targets = examples.inputs[part], examples.targets[part]
    sums = torch.zeros(3, dtype=torch.float64)
    device = next(model.parameters()).device
    model.eval()
    with torch.no_grad():
        for first in range(0, len(targets), BATCH):
            outputs = model(workload.prepare(inputs[first : first + BATCH]).to(device))
            batch = targets[first : first + BATCH].to(device)
            loss = _number(workload, "loss", workload.loss(outputs, batch))
            right = (
                _number(workload, "correct", workload.correct(outputs, batch)) if workload.correct else math.nan
            )
            sums += torch.tensor([loss * len(batch), right, len(batch)])
    loss, right, count = comm.gather(sums).sum(dim=0).tolist()
    return Score(loss / count, right / count)


def _number(workload: Workload, name: str, value: Tensor) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        found = f"shape {tuple(value.shape)}" if hasattr(value, "shape") else type(value).__name__
        raise UsageError(
            f"workload {workload.name!r}: {name} must return a tensor of one number, found {found}"
        ) from None
