"""Codecs in NumPy, written from the formulas in their docstrings."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from swarmstep.comm.codecs import Bfloat16, Codec, Int4, Int8, NMCodec, TopK

Floats = NDArray[np.float32]


Bytes = NDArray[np.uint8]


TINY = float(np.finfo(np.float32).tiny)


def integers(x: Floats, top: int) -> tuple[NDArray[np.int64], np.float32]:
    """Return one block's integers and its scale."""
    scale = np.float32(np.abs(x).max(initial=0) / np.float32(top))
    if scale < TINY:
        return np.zeros(len(x), np.int64), np.float32(0)
    return np.rint(x * (np.float32(1) / scale)).astype(np.int64), scale


def raw(array: NDArray[np.generic]) -> Bytes:
    return np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8)


def bfloat16_bytes(x: Floats) -> tuple[Bytes, Floats]:
    bits = x.view(np.uint32).astype(np.uint64)
    high = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return raw(high.astype(np.uint16)), (high << 16).astype(np.uint32).view(np.float32)


def blocks_bytes(
    x: Floats, top: int, block: int, pack: Callable[[NDArray[np.int64]], Bytes]
) -> tuple[Bytes, Floats]:
    data, values = [np.zeros(0, np.uint8)], [np.zeros(0, np.float32)]
    for a in range(0, len(x), block):
        q, scale = integers(x[a : a + block], top)
        data += [raw(np.array([scale])), pack(q)]
        values.append(q.astype(np.float32) * scale)
    return np.concatenate(data), np.concatenate(values)


def nibbles(q: NDArray[np.int64]) -> Bytes:
    half = (len(q) + 1) // 2
    high = np.append(q[half:], 0)[:half]
    return ((q[:half] + 8) | ((high + 8) << 4)).astype(np.uint8)


def topk_bytes(x: Floats, fraction: float) -> tuple[Bytes, Floats]:
    k = min(len(x), max(1, math.ceil(fraction * len(x))))
    kept = np.sort(np.lexsort((np.arange(len(x)), -np.abs(x)))[:k])
    q, scale = integers(x[kept], 127)
    values = np.zeros_like(x)
    values[kept] = q.astype(np.float32) * scale
    return np.concatenate([raw(np.array([scale])), raw(kept.astype(np.int32)), raw(q.astype(np.int8))]), values


def nm_bytes(x: Floats, n: int, m: int) -> tuple[Bytes, Floats]:
    patterns = [*itertools.combinations(range(m), n)]
    bits = (len(patterns) - 1).bit_length()
    groups = np.append(x, np.zeros(-len(x) % m, np.float32)).reshape(-1, m)
    data, values = [np.zeros(0, np.uint8)], np.zeros_like(groups)
    for a in range(0, len(groups), 8):
        block, planes = groups[a : a + 8], np.zeros(bits, np.uint8)
        for i, group in enumerate(block):
            kept = sorted(np.lexsort((np.arange(m), -np.abs(group)))[:n].tolist())
            values[a + i, kept] = group[kept]
            data.append(raw(group[kept]))
            for bit in range(bits):
                planes[bit] |= (patterns.index(tuple(kept)) >> bit & 1) << i
        data.append(planes)
    return np.concatenate(data), values.reshape(-1)[: len(x)]


def oracle(codec: Codec, x: Floats) -> tuple[Bytes, Floats]:
    """Return the bytes and what they stand for."""
    if isinstance(codec, Bfloat16):
        return bfloat16_bytes(x)
    if isinstance(codec, Int8):
        return blocks_bytes(x, 127, codec.block, lambda q: raw(q.astype(np.int8)))
    if isinstance(codec, Int4):
        return blocks_bytes(x, 7, codec.block, nibbles)
    if isinstance(codec, NMCodec):
        return nm_bytes(x, codec.n, codec.m)
    assert isinstance(codec, TopK)
    return topk_bytes(x, codec.fraction)
