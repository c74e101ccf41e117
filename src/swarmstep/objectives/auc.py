"""The area under the ROC curve (AUC): exactly, and as a min-max problem that one trains for."""

from __future__ import annotations

import math
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from swarmstep.errors import UsageError


def auc(scores: Tensor, targets: Tensor) -> float:
    """Return the probability that a positive example's score is above a negative one's; ties count 1/2.

    Exact, from the ranks of the scores (Mann and Whitney, 1947). NaN where there are no positives, no negatives,
    or a score is NaN.

    Args:
        scores: [N] or [N, 1].
        targets: [N], 1 for positive and 0 for negative examples.

    Raises:
        UsageError: the shapes do not fit, or a target is neither 0 nor 1.
    """
    scores, positive = _checked(scores, targets)
    pairs = int(positive.sum()) * int((~positive).sum())
    if not pairs or scores.isnan().any():
        return math.nan
    _, place, counts = scores.unique(return_inverse=True, return_counts=True)
    ranks = counts.cumsum(0).double() - (counts - 1) / 2  # of equal scores the mean of theirs
    n = int(positive.sum())
    return float(ranks[place[positive]].sum() - n * (n + 1) / 2) / pairs


class Saddle(NamedTuple):
    """The best a, b and alpha for given scores: floats."""

    a: float
    b: float
    alpha: float


class AUCMinMax(nn.Module):
    """The AUC's pairwise square loss as a min-max problem, whose gradient needs no pairs.

    ::

        F = (1-p) (h - a)^2 [y=1] + p (h - b)^2 [y=0]
            + 2 (1 + alpha) (p h [y=0] - (1-p) h [y=1]) - p (1-p) alpha^2 + p (1-p)

        min over the model, a and b, max over alpha; h is the score

    At the best a, b and alpha, for any scores, its mean is p (1-p) E(1 - h+ + h-)^2, over independent h+ and h- of
    the two classes: the square loss of a pair, which falls as positives rise above negatives. There a and b are
    the classes' mean scores, and alpha = b - a.

    Call it as a loss: ``criterion(scores, targets)``, the mean of F over the batch. Its backward pass turns the
    sign of alpha's gradient, so that whatever optimizer minimizes the model's parameters maximizes alpha. alpha is
    averaged only (`average_only`): an outer momentum would act on a saddle point. a and b are parameters like the
    model's.

    Put model and criterion into one module, so that the rounds synchronize both::

        both = nn.ModuleDict({"model": model, "criterion": AUCMinMax()})
        optimizer = torch.optim.SGD(both.parameters(), lr=0.1)
        sync = Synchronizer(both, DiLoCo(when=Every(64)), comm)

    Args:
        positive_rate: p, the share of positives among the examples as they are drawn, above 0 and below 1; 0.5
            with balanced batches. It only scales F, where batches have the share that it says.

    Raises:
        UsageError: `positive_rate` is out of its range; in a call, the shapes do not fit.

    Source: Guo et al., Communication-Efficient Distributed Stochastic AUC Maximization with Deep Neural Networks
    (CODA), arXiv 2005.02426. The formula is written from memory of the paper; that it has the value above is
    derived here and tested. The constant p (1-p), which changes no gradient, is ours, and so is that alpha is
    averaged only.
    """

    average_only: ClassVar[tuple[str, ...]] = ("alpha",)

    def __init__(self, positive_rate: float = 0.5) -> None:
        super().__init__()
        if not 0.0 < positive_rate < 1.0:
            raise UsageError(f"positive_rate: expected above 0 and below 1, found {positive_rate!r}")
        self.positive_rate = positive_rate
        self.a, self.b, self.alpha = (nn.Parameter(torch.zeros(())) for _ in range(3))

    def forward(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Return the mean of F over a batch.

        Args:
            scores: [B] or [B, 1].
            targets: [B], 1 for positive and 0 for negative examples.
        """
        h, positive = _checked(scores, targets)
        p = self.positive_rate
        alpha = 2 * self.alpha.detach() - self.alpha  # alpha's value exactly, with the sign of its gradient turned
        of_positive = (1 - p) * ((h - self.a).square() - 2 * (1 + alpha) * h)
        of_negative = p * ((h - self.b).square() + 2 * (1 + alpha) * h)
        return torch.where(positive, of_positive, of_negative).mean() + p * (1 - p) * (1 - alpha.square())

    @torch.no_grad()
    def settle(self, scores: Tensor, targets: Tensor) -> Saddle:
        """Set a, b and alpha to the best for these scores, and return them.

        For loops of one's own: at the end of a stage, say, from scores of all workers.

        Raises:
            UsageError: a class has no example.
        """
        h, positive = _checked(scores, targets)
        if positive.all() or not positive.any():
            raise UsageError(f"settle: expected examples of both classes, found {len(h)} of one")
        a, b = h[positive].mean(), h[~positive].mean()
        for parameter, value in zip((self.a, self.b, self.alpha), (a, b, b - a), strict=True):
            parameter.copy_(value)
        return Saddle(float(a), float(b), float(b - a))


def _checked(scores: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the scores as [N], and which examples are positive, bool [N]."""
    if scores.ndim == 2 and scores.shape[1] == 1:
        scores = scores[:, 0]
    if targets.ndim != 1 or scores.shape != targets.shape:
        raise UsageError(
            f"AUC: expected one score for each target, [N] or [N, 1] and [N], found {list(scores.shape)} and "
            f"{list(targets.shape)}"
        )
    positive = targets == 1
    if not (positive | (targets == 0)).all():
        raise UsageError("AUC: expected targets of 0 and 1")
    return scores, positive
