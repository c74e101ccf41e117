"""How good a model is: mean loss, accuracy, and what else a workload measures on a set of examples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from swarmstep.comm.base import Comm
from swarmstep.errors import UsageError
from swarmstep.train.local_step import measure_loss
from swarmstep.workloads import Examples, Workload

BATCH = 500


class Score(NamedTuple):
    """Mean loss, in its own unit, accuracy, 0 to 1 (NaN where there is none), and the workload's own measures."""

    loss: float
    accuracy: float
    metrics: tuple[float, ...] = ()
    averages: tuple[float, ...] = ()


class Sums(NamedTuple):
    """Over some examples: the sum of the loss, the correct answers (NaN where the workload has none), how many.

    `averages` are sums, too; `metrics` are of these examples as a whole. Both are the workload's, in its order.
    """

    loss: float
    correct: float
    examples: float
    metrics: tuple[float, ...] = ()
    averages: tuple[float, ...] = ()

    @property
    def score(self) -> Score:
        """The mean over the examples."""
        count = self.examples
        return Score(
            self.loss / count, self.correct / count, self.metrics, tuple(a / count for a in self.averages)
        )


def evaluate(model: nn.Module, workload: Workload, examples: Examples) -> Sums:
    """Return the sums of one model on these examples; communicates with nobody.

    Args:
        model: is left in eval mode.
        workload: prepares the examples, and has the loss and the count of correct answers.
        examples: as they are stored.

    Raises:
        UsageError: the workload's `loss`, `correct` or one of its `averages` does not return one number.
    """
    sums, kept = torch.zeros(3 + len(workload.averages), dtype=torch.float64), list[Tensor]()
    device = next(model.parameters()).device
    model.eval()
    with torch.no_grad():
        for first in range(0, len(examples), BATCH):
            outputs = model(workload.prepare(examples.inputs[first : first + BATCH]).to(device))
            targets = examples.targets[first : first + BATCH].to(device)
            loss = float(measure_loss(model, workload, outputs, targets))
            kept += [outputs.cpu()] if workload.metrics else []
            correct = math.nan
            if workload.correct:
                correct = _number(workload, "correct", workload.correct(outputs, targets))
            averages = [
                _number(workload, name, average(outputs)) * len(targets)
                for name, average in workload.averages.items()
            ]
            sums += torch.tensor([loss * len(targets), correct, len(targets), *averages])
    metrics = [float(metric(torch.cat(kept), examples.targets)) for metric in workload.metrics.values()]
    return _sums(sums, metrics)


def _sums(sums: Tensor, metrics: Sequence[float]) -> Sums:
    """Return the sums in a vector: of loss, correct answers, examples, then of the averages."""
    loss, correct, examples, *averages = sums.tolist()
    return Sums(loss, correct, examples, tuple(metrics), tuple(averages))


def evaluate_together(
    model: nn.Module, workload: Workload, examples: Examples, comm: Comm, *, identical: bool
) -> Score:
    """Return the score of the workers' models, the same on all ranks. Collective.

    Args:
        model: this worker's; is left in eval mode.
        workload: as in `evaluate`.
        examples: all of them, the same on all ranks.
        comm: the group.
        identical: all ranks hold the same model, so that each evaluates a part of the examples, unless the
            workload has metrics of a whole set; otherwise the result is the mean of the workers' own scores.

    Raises:
        UsageError: as `evaluate`.
    """
    part = slice(comm.rank, None, comm.size) if identical and not workload.metrics else slice(None)
    own = evaluate(model, workload, Examples(examples.inputs[part], examples.targets[part]))
    rows = comm.gather(torch.tensor([*own[:3], *own.averages, *own.metrics], dtype=torch.float64))
    summed = 3 + len(own.averages)
    return _sums(rows[:, :summed].sum(dim=0), rows[:, summed:].mean(dim=0).tolist()).score


def named_scores(workload: Workload, name: str, score: Score) -> dict[str, float]:
    """Return the score on the set `name` as a run records it: "test_loss", "test_accuracy", and other measures."""
    values = {measure: function(score.loss) for measure, function in workload.measures.items()}
    values |= {
        "loss": score.loss,
        "accuracy": score.accuracy,
        **dict(zip(workload.metrics, score.metrics, strict=True)),
        **dict(zip(workload.averages, score.averages, strict=True)),
    }
    return {f"{name}_{measure}": value for measure, value in values.items()}


def _number(workload: Workload, name: str, value: Tensor) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        found = f"shape {tuple(value.shape)}" if hasattr(value, "shape") else type(value).__name__
        raise UsageError(
            f"workload {workload.name!r}: {name} must return a tensor of one number, found {found}"
        ) from None
