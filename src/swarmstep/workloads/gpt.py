"""A small GPT over bytes, for text."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

BYTES = 256  # the vocabulary: no tokenizer
CONTEXT = 64
HEAD = 32  # width of an attention head
DEVIATION = 0.02  # of the initial weights


class Cache:
    """What a GPT keeps of a text that it has read: keys and values of each block, [B, heads, length, 32] each."""

    def __init__(self, layers: int) -> None:
        self.blocks: list[list[Tensor]] = [[] for _ in range(layers)]

    def cut(self, length: int) -> Cache:
        """Forget what follows the first `length` bytes, and return this."""
        for kept in self.blocks:
            kept[:] = [x[:, :, :length] for x in kept]
        return self

    def __len__(self) -> int:
        return self.blocks[0][0].shape[2] if self.blocks[0] else 0


class GPT(nn.Module):
    """A causal transformer over bytes: int64 [B, T], T <= CONTEXT, to logits [B, T, 256] for the next byte.

    As GPT-2 (Radford et al. 2019): norms first, learned positions, GELU, the head tied to the embedding. Unlike
    it, linear layers have no bias and there is no dropout. Weights are N(0, 0.02), those that write to the
    residual stream divided by sqrt(2 layers), from torch's global generator.

    `width` is a multiple of 32, the width of an attention head; `layers` is at least 1.
    """

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(BYTES, width)
        self.positions = nn.Embedding(CONTEXT, width)
        self.blocks = nn.Sequential(*(_Block(width) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, BYTES, bias=False)
        self.head.weight = self.embedding.weight
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                writes = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(parameter, std=DEVIATION / (math.sqrt(2 * layers) if writes else 1.0))

    def forward(self, text: Tensor, cache: Cache | None = None) -> Tensor:
        """Return the logits; with a cache `text` goes on where it ends, and is added to it."""
        first = 0 if cache is None else len(cache)
        place = torch.arange(first, first + text.shape[1], device=text.device)
        x = self.embedding(text) + self.positions(place)
        for number, block in enumerate(self.blocks):
            x = block(x, None if cache is None else cache.blocks[number])
        return self.head(self.norm(x))


class _Block(nn.Module):
    """Causal self-attention and a hidden layer of four times the width, each added to its input [B, T, width]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attend = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor, kept: list[Tensor] | None = None) -> Tensor:
        batch, length, width = x.shape
        shape = (batch, length, 3, width // HEAD, HEAD)
        query, key, value = self.attend(self.norm_1(x)).view(shape).permute(2, 0, 3, 1, 4)
        mask = None
        if kept is not None:
            if kept:
                key, value = torch.cat([kept[0], key], 2), torch.cat([kept[1], value], 2)
                mask = torch.ones(length, key.shape[2], dtype=torch.bool, device=x.device).tril(
                    key.shape[2] - length
                )
            kept[:] = key, value
        mixed = scaled_dot_product_attention(query, key, value, mask, is_causal=mask is None)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(gelu(self.up(self.norm_2(x))))


def with_cache(model: GPT) -> Callable[[Tensor, int], Tensor]:
    """Return what gives the logits after `known` bytes of a text that are as in the call before, for sampling."""
    cache = Cache(len(model.blocks))
    return lambda text, known: model(text[:, known:], cache.cut(known))
