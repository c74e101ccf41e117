"""Coded vectors: what tests run both in process and in real processes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from codec_oracle import Floats
from helpers import same
from swarmstep import Comm
from swarmstep.comm.codecs import Codec, Int8
from swarmstep.comm.coded import Coded
from swarmstep.errors import CommError


def start(n: int) -> Floats:
    return np.random.default_rng(1).normal(size=n).astype(np.float32)


def drifted(common: Floats, r: int, rank: int) -> Floats:
    """Return what a rank brings to round r."""
    return (common + 0.1 * np.random.default_rng([2, r, rank]).normal(size=len(common))).astype(np.float32)


def play(comm: Comm, codec: Codec, n: int, weights: list[list[float]], referenced: bool) -> list[Any]:
    """Run a round for each row of weights; a rank of weight 0 brings NaN. The mean is the next reference."""
    coded = Coded(comm, codec, torch.from_numpy(start(n)), referenced=referenced)
    common, found = start(n), []
    for r, row in enumerate(weights):
        x = torch.from_numpy(drifted(common, r, comm.rank))
        if not row[comm.rank]:
            x.fill_(math.nan)
        before, state = x.clone(), [t.clone() for t in coded.state]
        coded.discard()
        mean, total = coded.mean(x, row[comm.rank])
        sent = coded.sent(x)
        assert same(x, before)
        assert same([*coded.state], state), "mean changed the state"
        assert sent.data_ptr() != mean.data_ptr()
        coded.commit(mean)
        assert same(coded.sent(x), x), "nothing is staged after commit"
        common = mean.numpy().copy()
        found.append((mean, total, sent, [t.clone() for t in coded.state]))
    return found


def weights_of(size: int, rounds: int) -> list[list[float]]:
    """Equal weights first, then uneven ones, with one rank or more absent at times."""
    rng = np.random.default_rng(size)
    rows = [[1.0] * size]
    while len(rows) < rounds:
        row = rng.choice([0.0, 0.3, 1.0, 2.5], size=size).tolist()
        rows += [row] if any(row) else []
    return rows


def verbs(comm: Comm, codec: Codec, referenced: bool) -> list[Tensor]:
    coded = Coded(comm, codec, torch.from_numpy(start(100)), referenced=referenced)
    coded.commit(torch.from_numpy(start(100)) + 1)
    x = torch.from_numpy(drifted(start(100), 0, comm.rank)).view(4, 25)
    rows = torch.stack([x.reshape(-1) + to for to in range(comm.size)])
    shifted = [(rank + 1) % comm.size for rank in range(comm.size)]
    calls = [coded.gather(x), coded.broadcast(x, 1), coded.permute(x, shifted), coded.all_to_all(rows)]
    assert same(coded.sent(x), x), "only a mean stages"
    return [call.clone() for call in calls]


def nobody(comm: Comm) -> tuple[str, bool]:
    coded = Coded(comm, Int8(), torch.zeros(4))
    before = [t.clone() for t in coded.state]
    with pytest.raises(CommError) as caught:
        coded.mean(torch.full((4,), math.nan), 0.0)
    return str(caught.value), same([*coded.state], before)


def split_up(comm: Comm) -> list[Any]:
    coded = Coded(comm, Int8(block=4), torch.from_numpy(start(12)))
    pairs = coded.split(comm.rank // 2, "pairs")
    assert pairs is coded.split(0, "pairs")
    x = torch.from_numpy(drifted(start(12), 0, comm.rank))
    return [pairs.mean(x)[0], pairs.gather(x[:5]), [t.numel() for t in pairs.state]]


def reused(comm: Comm) -> list[Tensor]:
    """The same rounds in memory that is used again, and in fresh memory."""
    fresh = Coded(comm, Int8(block=4), torch.zeros(30))
    group = comm.reusing()
    own = Coded(group, Int8(block=4), torch.zeros(30), reuse=True)
    seen, means = set(), []
    for r in range(5):
        group.recycle()
        own.recycle()
        x = torch.from_numpy(drifted(start(30), r, comm.rank))
        found = [
            [end.mean(x)[0], end.gather(x), end.sent(x), end.split(0, "all").mean(x)[0]] for end in (own, fresh)
        ]
        assert same(found[0], found[1])
        means.append(found[0][0].clone())
        seen |= {t.data_ptr() for t in found[0]}
        for end in (own, fresh):
            end.commit(means[-1])
    assert len(seen) == 4
    return means
