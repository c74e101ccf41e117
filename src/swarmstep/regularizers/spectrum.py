"""The tail of a matrix's singular values: its sum, its gradient, and the step that shrinks it."""

from __future__ import annotations

import torch
from torch import Tensor


def tail(matrix: Tensor, head: int) -> Tensor:
    """Return the sum of all singular values of `matrix` [k, d] but the `head` largest."""
    return torch.linalg.svdvals(matrix)[head:].sum()


def tail_by_column(weight: Tensor, scale: Tensor, head: int) -> Tensor:
    """Return the gradient [d] of the tail of `weight` [k, d] diag(`scale` [d]) with respect to the scale.

    With U S V' the singular value decomposition of the product: sum_{j > head} u_j' weight[:, q] V[q, j]. One of
    the subgradients where singular values are equal or zero.
    """
    u, _, v = torch.linalg.svd(weight * scale, full_matrices=False)
    return ((u[:, head:].t() @ weight) * v[head:]).sum(0)


def shrink_tail(matrix: Tensor, head: int, by: float) -> Tensor:
    """Return argmin_X |X - matrix|_F^2 / 2 + by tail(X, head).

    Singular values behind the head become less by `by`, at least 0. With head = 0 it is singular value
    thresholding. The tail is not convex for head >= 1; this is its global minimum all the same, since singular
    values stay in their order.
    """
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    s[head:] = (s[head:] - by).clamp(min=0.0)
    return (u * s) @ v
