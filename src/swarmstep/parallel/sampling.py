"""Autoregressive sampling by sweeps: many places are predicted at once, and what is right is kept."""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from swarmstep.errors import UsageError
from swarmstep.seeding import generator


class Predict(Protocol):
    """A causal model: the logits at a place depend on the text up to there only."""

    def __call__(self, text: Tensor, known: int, /) -> Tensor:
        """Return logits [B, n - known or more, V] of what follows the last places of `text`, int64 [B, n].

        The first `known` places are as they were in the call before, so that a model with a cache need not read
        them again; 0: nothing is. Without a cache: ``lambda text, known: model(text)``.
        """
        ...


class Sampled(NamedTuple):
    """Text int64 [B, prompt + tokens], and how many calls of the model it took."""

    text: Tensor
    sweeps: int


@torch.no_grad()
def sample(
    predict: Predict,
    prompt: Tensor,
    tokens: int,
    *,
    window: int = 16,
    context: int | None = None,
    seed: int = 0,
    temperature: float = 1.0,
) -> Sampled:
    """Return a continuation of `prompt`, sampled from a causal model by sweeps over a window of places.

    The noise u_t of each place is a function of (seed, t), so that the text solves a triangular system::

        s_t = argmax(logits(s_1 ... s_{t-1}) / temperature + u_t),      u_t Gumbel noise

    A sweep predicts all places of the window at once from the guesses before them. A place is right if all
    guesses before it were; the window then moves behind the places that are (GS-Jacobi). Each sweep gets at least
    one place right: `window=1` is sequential sampling, and other windows return the same text in as many calls or
    fewer. The same but for ties: where two logits differ by less than what they are rounded by, either may win.

    Args:
        predict: the model.
        prompt: int64 [B, n], n at least 1. With several rows the window moves behind what is right in all of them.
        tokens: how many to add, at least 1.
        window: places in a sweep, at least 1.
        context: the longest text that the model takes, at least 2 (None: any). Beyond it, it sees the text from a
            multiple of context // 2 on, at least context // 2 places, which does not depend on the window.
        seed: of the noise.
        temperature: of the softmax that is sampled from; 0: the most probable, without noise.

    Cost: a call of the model for each sweep. The guess of a new place is the one before it, repeated.

    Raises:
        UsageError: an argument is out of its range.

    Source: Song, Meng, Liao, Ermon, ICML 2021 (arXiv 2002.03629): autoregressive sampling by such iterations.
    Ours: Gumbel noise, the first guess, the way beyond the context.
    """
    _check(prompt, {"tokens": (tokens, 1), "window": (window, 1), "context": (context or 2, 2)}, temperature)
    front, end, sweeps = prompt.shape[1], prompt.shape[1] + tokens, 0
    text = torch.cat([prompt, prompt[:, -1:].expand(-1, tokens)], dim=1)
    began, ahead, noise = 0, front, list[Tensor]()
    while front < end:
        begin = _begin(front, context)
        reach = min(front + window, end, begin + context + 1 if context else end)
        text[:, ahead:reach] = text[:, ahead - 1 : ahead]
        ahead = max(ahead, reach)
        logits = predict(text[:, begin : reach - 1], front - 1 - begin if begin == began and sweeps else 0)
        logits = logits[:, front - reach :]
        noise += [_gumbel(logits, seed, place) for place in range(front + len(noise), reach) if temperature]
        if temperature:
            logits = logits / temperature + torch.stack(noise[: reach - front], dim=1)
        found = logits.argmax(2)
        guessed_right = (found == text[:, front:reach]).all(0).tolist()
        text[:, front:reach] = found
        moved = min(1 + sum(itertools.takewhile(bool, guessed_right)), reach - front)
        front, began, sweeps, noise = front + moved, begin, sweeps + 1, noise[moved:]
    return Sampled(text, sweeps)


def _begin(place: int, context: int | None) -> int:
    """Return where the text begins from which `place` is predicted."""
    if context is None or place <= context:
        return 0
    return math.ceil((place - context) / (context // 2)) * (context // 2)


def _gumbel(logits: Tensor, seed: int, place: int) -> Tensor:
    """Return the noise of a place, [B, V]."""
    shape = (logits.shape[0], logits.shape[2])
    uniform = torch.rand(shape, generator=generator("sample", seed, place), dtype=torch.float64)
    return -(-uniform.log()).log().to(logits)


def _check(prompt: Tensor, least: dict[str, tuple[int, int]], temperature: float) -> None:
    if prompt.dtype != torch.int64 or prompt.ndim != 2 or not prompt.numel():
        raise UsageError(f"sample: prompt must be int64 [B, n], found {prompt.dtype} {tuple(prompt.shape)}")
    for name, (value, low) in least.items():
        if value < low:
            raise UsageError(f"sample: {name} must be at least {low}, found {value}")
    if not 0.0 <= temperature < math.inf:
        raise UsageError(f"sample: temperature must be at least 0 and finite, found {temperature}")
