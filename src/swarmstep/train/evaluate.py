"""How good a model is: mean loss, accuracy and other means on a set of examples."""

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
    """Mean loss, in the loss's own unit, and accuracy, 0 to 1 (NaN where the workload has none).

    `averages` are those of the workload, in its order.
    """

    loss: float
    accuracy: float
    averages: tuple[float, ...] = ()


class Sums(NamedTuple):
    """Over some examples: the sum of the loss, the correct answers (NaN where the workload has none), how many.

    `averages` are the sums of the workload's, in its order.
    """

    loss: float
    correct: float
    examples: float
    averages: tuple[float, ...] = ()

    @classmethod
    def of(cls, row: Tensor) -> Sums:
        """Return what `row` puts in one float64 vector."""
        loss, correct, examples, *averages = row.tolist()
        return cls(loss, correct, examples, tuple(averages))

    @property
    def row(self) -> Tensor:
        """All of it in one float64 vector."""
        return torch.tensor([*self[:3], *self.averages], dtype=torch.float64)

    @property
    def score(self) -> Score:
        """The mean over the examples."""
        means = tuple(average / self.examples for average in self.averages)
        return Score(self.loss / self.examples, self.correct / self.examples, means)


def evaluate(model: nn.Module, workload: Workload, examples: Examples) -> Sums:
    """Return the sums of one model on these examples; communicates with nobody.

    Args:
        model: is left in eval mode.
        workload: prepares the examples, and has the loss, the count of correct answers and the averages.
        examples: as they are stored.

    Raises:
        UsageError: the workload's `loss`, `correct` or one of its `averages` does not return one number.
    """
    sums = torch.zeros(3 + len(workload.averages), dtype=torch.float64)
    device = next(model.parameters()).device
    model.eval()
    with torch.no_grad():
        for first in range(0, len(examples), BATCH):
            outputs = model(workload.prepare(examples.inputs[first : first + BATCH]).to(device))
            targets = examples.targets[first : first + BATCH].to(device)
            loss = _number(workload, "loss", workload.loss(outputs, targets))
            correct = math.nan
            if workload.correct:
                correct = _number(workload, "correct", workload.correct(outputs, targets))
            averages = [
                _number(workload, name, average(outputs)) * len(targets)
                for name, average in workload.averages.items()
            ]
            sums += torch.tensor([loss * len(targets), correct, len(targets), *averages])
    return Sums.of(sums)


def evaluate_together(
    model: nn.Module, workload: Workload, examples: Examples, comm: Comm, *, identical: bool
) -> Score:
    """Return the score of the workers' models, the same on all ranks. Collective.

    Args:
        model: this worker's; is left in eval mode.
        workload: as in `evaluate`.
        examples: all of them, the same on all ranks.
        comm: the group.
        identical: all ranks hold the same model, so that each evaluates a part of the examples; otherwise the
            result is the mean of the workers' own scores.

    Raises:
        UsageError: as `evaluate`.
    """
    part = slice(comm.rank, None, comm.size) if identical else slice(None)
    own = evaluate(model, workload, Examples(examples.inputs[part], examples.targets[part]))
    return Sums.of(comm.gather(own.row).sum(dim=0)).score


def named_scores(workload: Workload, name: str, score: Score) -> dict[str, float]:
    """Return the score on the set `name` as a run records it: "test_loss", "test_accuracy", and other measures."""
    values = {measure: function(score.loss) for measure, function in workload.measures.items()}
    values |= {"loss": score.loss, "accuracy": score.accuracy}
    values |= zip(workload.averages, score.averages, strict=True)
    return {f"{name}_{measure}": value for measure, value in values.items()}


def _number(workload: Workload, name: str, value: Tensor) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        found = f"shape {tuple(value.shape)}" if hasattr(value, "shape") else type(value).__name__
        raise UsageError(
            f"workload {workload.name!r}: {name} must return a tensor of one number, found {found}"
        ) from None
