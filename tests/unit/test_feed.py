"""The probe of a run: which examples it takes, and what it says of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from swarmstep.data.sharding import hold_out
from swarmstep.train.build import resolve
from swarmstep.train.config import Config
from swarmstep.train.feed import Feed
from swarmstep.workloads import Defaults, Examples, Workload


class Watched(nn.Module):
    """A linear model that keeps what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(1, 3)
        self.seen = torch.empty(0)

    def forward(self, inputs: Tensor) -> Tensor:
        self.seen = inputs
        return self.linear(inputs)


def halves(count: int) -> Workload:
    """A workload whose inputs are their own indices."""
    examples = Examples(torch.arange(count).view(-1, 1), torch.arange(count) % 3)
    return Workload("own", examples, examples, {"own": Watched}, Defaults(batch=32), classes=3)


@pytest.mark.parametrize("count", [60, 200, 1420, 4000, 20000])
def test_the_ith_example_is_of_the_ith_part_of_what_is_held_out(count: int) -> None:
    workload = halves(count)
    feed = Feed(resolve(Config("own", workers=2, seed=5), workload), workload, 0, torch.device("cpu"))
    held, model, drawn = hold_out(count, 5).probe, Watched(), []
    n = min(128, len(held))
    for step in range(3):
        with torch.no_grad():
            losses = feed.probe(model, step)
            each = cross_entropy(model.linear(model.seen), model.seen.long().view(-1) % 3, reduction="none")
        drawn.append(model.seen.long().view(-1))
        assert len(losses) == len(drawn[-1]) == n
        for i, example in enumerate(drawn[-1].tolist()):
            assert example in held[i * len(held) // n : (i + 1) * len(held) // n]
        groups = np.array_split(each.numpy(), 16)
        expected = np.concatenate([np.full(len(group), group.mean()) for group in groups if len(group)])
        np.testing.assert_allclose(losses, expected, rtol=1e-5, atol=1e-5)
        assert float(losses.double().mean()) == pytest.approx(float(each.double().mean()), rel=1e-5)
    assert torch.equal(drawn[0], drawn[1]) == (len(held) <= 128)
