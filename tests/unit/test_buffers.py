"""What happens to BatchNorm's statistics in a round, by policy."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from helpers import Trainer
from swarmstep import (
    PSOPS,
    Comm,
    Every,
    Independent,
    LocalSGD,
    Options,
    Strategy,
    Synchronizer,
    Warmup,
    simulate,
)
from swarmstep.runtime.module_tensors import persistent_buffers

FIRST = LocalSGD(when=Every(2))


def statistics(comm: Comm, strategy: Strategy, buffers: str | None) -> list[Tensor]:
    """Return running mean and variance before and after the first round, and the count of batches."""
    trainer = Trainer(strategy, comm, buffers=buffers)
    norm = trainer.model[1]
    trainer.step()
    loss = trainer.local_step()
    before = torch.cat([norm.running_mean, norm.running_var])
    trainer.sync.step(loss)
    return [before, torch.cat([norm.running_mean, norm.running_var]), norm.num_batches_tracked.clone()]


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_mean_takes_the_mean_of_all(workers: int) -> None:
    found = simulate(lambda comm: statistics(comm, FIRST, "mean"), workers)
    expected = torch.stack([before for before, _, _ in found]).mean(0)
    for _, after, count in found:
        torch.testing.assert_close(after, expected, rtol=1e-6, atol=1e-6)
        assert count == 2  # a count of batches is each worker's own


@pytest.mark.parametrize("strategy", [FIRST, PSOPS(when=Every(2)), Independent(when=Every(2))])
def test_local_keeps_each_workers_own(strategy: Strategy) -> None:
    found = simulate(lambda comm: statistics(comm, strategy, "local"), 3)
    assert all(torch.equal(before, after) for before, after, _ in found)
    assert not torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize("strategy", [FIRST, PSOPS(when=Every(2))])
def test_first_takes_rank_zeros(strategy: Strategy) -> None:
    found = simulate(lambda comm: statistics(comm, strategy, "first"), 3)
    assert all(torch.equal(after, found[0][0]) for _, after, _ in found)
    assert not torch.equal(found[0][0], found[1][0])


def test_each_strategy_has_its_default() -> None:
    for strategy, expected in ((FIRST, "mean"), (PSOPS(when=Every(2)), "local")):
        default = simulate(lambda comm, s=strategy: statistics(comm, s, None), 2)
        named = simulate(lambda comm, s=strategy, e=expected: statistics(comm, s, e), 2)
        for a, b in zip(default, named, strict=True):
            assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("buffers", ["local", "first"])
def test_a_warm_up_follows_the_policy_too(buffers: str) -> None:
    found = simulate(lambda comm: statistics(comm, Warmup(PSOPS(when=Every(9)), 2), buffers), 2)
    for before, after, _ in found:
        assert torch.equal(after, before if buffers == "local" else found[0][0])


def test_a_model_at_the_end_is_whole_and_the_same_for_all() -> None:
    def train(comm: Comm) -> list[Tensor]:
        trainer = Trainer(PSOPS(when=Every(2)), comm)
        for _ in range(5):
            trainer.step()
        trainer.sync.finish()
        return [t for t in trainer.model.state_dict().values() if t.is_floating_point()]

    found = simulate(train, 3)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


class Recurrent(nn.Module):
    """Keeps its hidden state, whose shape follows the batch, and statistics that a child has under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(3, 2)
        self.norm = nn.BatchNorm1d(2, affine=False)
        self.twin = nn.Module()
        self.twin.register_buffer("mean", self.norm.running_mean)
        self.twin.register_buffer("kept", torch.zeros(2), persistent=False)
        self.other = nn.Module()
        self.other.register_buffer("late", self.twin.kept)  # persistent here, but not where it comes first
        self.register_buffer("hidden", None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.hidden = self.cell(x).detach()
        return self.norm(self.hidden)


def test_which_buffers_are_persistent() -> None:
    model = Recurrent()
    model(torch.ones(4, 3))
    names = ["norm.running_mean", "norm.running_var", "norm.num_batches_tracked"]
    assert list(persistent_buffers(model)) == names
    assert list(persistent_buffers(nn.Sequential(model, model))) == [f"0.{name}" for name in names]


@pytest.mark.parametrize("views", [True, False])
def test_a_hidden_state_stays_each_workers_own(views: bool) -> None:
    def train(comm: Comm) -> tuple[Tensor, Tensor]:
        model = Recurrent()
        if comm.rank:
            model(torch.ones(7, 3))  # before the start, too
        sync = Synchronizer(model, LocalSGD(when=Every(1)), comm, Options(views=views))
        for size in (4, 3, 2):
            model(torch.full((size + comm.rank, 3), 1.0 + comm.rank))
            own = model.hidden.clone()
            sync.step(1.0)
            assert torch.equal(model.hidden, own)
        return model.norm.running_mean.clone(), model.hidden

    (mean, short), (other, long) = simulate(train, 2)
    assert torch.equal(mean, other)
    assert (len(short), len(long)) == (2, 3)
