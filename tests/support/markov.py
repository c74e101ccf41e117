"""A text whose entropy is known: a Markov chain of order 2 over a few bytes."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor, nn


@dataclasses.dataclass(frozen=True)
class Markov:
    """P(c | a, b) for all symbols 0 to S - 1: float64 [S, S, S], drawn from a symmetric Dirichlet distribution."""

    rows: Tensor

    @classmethod
    def drawn(cls, symbols: int = 16, alpha: float = 0.3, seed: int = 0) -> Markov:
        source = np.random.default_rng(seed)
        return cls(torch.tensor(source.dirichlet([alpha] * symbols, (symbols, symbols))))

    def stationary(self) -> Tensor:
        """Return how often each pair (a, b) occurs in the long run, [S, S]."""
        pairs = torch.full_like(self.rows[0], 1 / self.rows[0].numel())
        for _ in range(1000):
            pairs = torch.einsum("ab,abc->bc", pairs, self.rows)
        return pairs

    def floor(self) -> float:
        """Return the entropy of a symbol given the two before it, in nats: no model has a smaller mean loss."""
        return float((self.stationary() * torch.special.entr(self.rows).sum(2)).sum())

    def text(self, length: int, seed: int) -> bytes:
        source = np.random.default_rng(seed)
        ends, draws = self.rows.cumsum(2).numpy(), source.random(length)
        a, b = 0, 0
        written: list[int] = []
        for draw in draws:
            c = min(int(np.searchsorted(ends[a, b], draw, side="right")), len(ends) - 1)
            written.append(c)
            a, b = b, c
        return bytes(written)


class Exact(nn.Module):
    """The chain itself as a model: bytes [B, T] to log-probabilities [B, T, 256]; wrong at the first byte only."""

    def __init__(self, chain: Markov) -> None:
        super().__init__()
        self.rows = chain.rows

    def forward(self, text: Tensor) -> Tensor:
        known = self.rows[text.roll(1, 1), text].log()
        return nn.functional.pad(known, (0, 256 - known.shape[2]), value=-1e9)
