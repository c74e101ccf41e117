"""LocalDrop: the tail, its gradient and its step; the bound it stands for; draws, limits, export, whole runs."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy import optimize
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from runs import MODELS, classes, resolved, rows, same_run, train
from swarmstep import STRATEGIES
from swarmstep.errors import UsageError
from swarmstep.regularizers import Dropout, LocalDrop, shrink_tail, tail, tail_by_column
from swarmstep.regularizers.localdrop import _drawn
from swarmstep.sparse import NM
from whole_runs import fast_ones


def matrix(seed: int, k: int = 6, d: int = 9) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(k, d)))


def test_the_tail_of_a_diagonal_matrix_is_the_sum_of_the_smallest() -> None:
    w, theta = torch.tensor([5.0, -1.0, 3.0, 0.5]), torch.tensor([0.5, 1.0, 0.9, 1.0])
    for head in range(5):
        assert float(tail(torch.diag(w * theta), head)) == pytest.approx(
            float((w * theta).abs().sort().values[: 4 - head].sum())
        )
    assert float(tail(matrix(0), 6)) == 0.0
    assert float(tail(matrix(0), 0)) == pytest.approx(np.linalg.norm(matrix(0).numpy(), "nuc"))


def test_the_gradient_of_the_keep_rates_is_that_of_differences() -> None:
    w, theta, step = matrix(1), torch.linspace(0.5, 1.0, 9, dtype=torch.float64), 1e-6
    found = tail_by_column(w, theta, 2)
    for q in range(9):
        shift = torch.zeros(9, dtype=torch.float64).index_fill(0, torch.tensor(q), step)
        difference = (tail(w * (theta + shift), 2) - tail(w * (theta - shift), 2)) / (2 * step)
        assert float(found[q]) == pytest.approx(float(difference), abs=1e-6)


def test_no_other_matrix_is_better_than_the_shrunk_one() -> None:
    y, head, by = matrix(2), 2, 0.4

    def cost(x: Tensor) -> float:
        return float(((x - y) ** 2).sum() / 2 + by * tail(x, head))

    best, source = shrink_tail(y, head, by), np.random.default_rng(0)
    for scale in (1e-3, 0.03, 0.3, 1.0):
        for _ in range(200):
            assert cost(best + scale * torch.from_numpy(source.normal(size=y.shape))) > cost(best)
    values = np.linalg.svd(y.numpy(), compute_uv=False)
    expected = [*values[:head], *np.maximum(values[head:] - by, 0)]
    assert np.allclose(np.linalg.svd(best.numpy(), compute_uv=False), expected)
    assert cost(y * 0.9) > cost(best)


def test_the_bound_holds_for_the_complexity_of_its_class() -> None:
    """E sup <A, sum_i e_i z_i'> / n over |A S|_F^2 <= r, tail(A S) <= tau: at most E s_1(T) / n (sqrt(r h) + tau).

    S is the root of the inputs' second moment, T = sum_i e_i (S^-1 z_i)'. The supremum over A S has the singular
    vectors of T; what is left is a problem in singular values, which is solved numerically.
    """
    source, n, d, k, r = np.random.default_rng(0), 60, 8, 5, 4.0
    z = source.normal(size=(n, d)) @ source.normal(size=(d, d))
    values, vectors = np.linalg.eigh(z.T @ z / n)
    white = z @ (vectors / np.sqrt(values)) @ vectors.T
    draws = [np.linalg.svd(source.choice([-1.0, 1.0], size=(k, n)) @ white, compute_uv=False) for _ in range(6)]
    for h, tau in ((1, 0.2), (2, 0.5), (3, 1.0)):
        found = np.mean([_supremum(t, r, h, tau) for t in draws]) / n
        bound = np.mean([t[0] for t in draws]) / n * (np.sqrt(r * h) + tau)
        assert 0.6 * bound < found <= bound


def _supremum(t: Any, r: float, h: int, tau: float) -> float:
    """Return max sum_j s_j t_j over s_1 >= s_2 >= ... >= 0 with sum s_j^2 <= r and sum_{j > h} s_j <= tau."""
    limits = [
        {"type": "ineq", "fun": lambda s: r - s @ s},
        {"type": "ineq", "fun": lambda s: tau - s[h:].sum()},
        {"type": "ineq", "fun": lambda s: -np.diff(s)},
    ]
    start = np.full(len(t), 0.01)
    found = optimize.minimize(lambda s: -s @ t, start, bounds=[(0, None)] * len(t), constraints=limits)
    assert found.success
    return float(-found.fun)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 8), nn.ReLU(), nn.Linear(8, 3))


def trained(model: nn.Module, modifier: LocalDrop | None, steps: int = 12) -> list[Tensor]:
    optimizer, generator = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9), torch.Generator().manual_seed(1)
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        mse_loss(model(torch.randn(6, 2, 4, 4, generator=generator)), torch.ones(6, 3)).backward()
        optimizer.step()
        if modifier:
            modifier.after_step(model, 0.1, step)
    return [p.detach() for name, p in model.named_parameters() if "keep" not in name]


def test_without_a_weight_and_with_all_inputs_it_is_plain_training_bit_for_bit() -> None:
    model, modifier = network(), LocalDrop(lam=0.0, keep=1.0, least=1.0, every=3)
    modifier.prepare(model)
    for found, expected in zip(trained(model, modifier), trained(network(), None), strict=True):
        assert torch.equal(found, expected)


def test_a_head_of_full_rank_regularizes_nothing() -> None:
    model, modifier = nn.Linear(5, 4).double(), LocalDrop(lam=10.0, head=4, every=1)
    before = model.weight.detach().clone()
    modifier.after_step(model, 0.1, 1)
    assert torch.allclose(model.weight, before, rtol=1e-12)


def test_a_turn_is_the_two_steps_of_the_docstring() -> None:
    model = nn.Sequential(nn.Linear(4, 9), nn.Linear(9, 6)).double()
    modifier = LocalDrop(lam=0.5, head=2, every=4, keep=0.8)
    modifier.prepare(model)
    first, w, t = model[0].weight.detach().clone(), model[1].weight.detach().clone(), 0.5 * 0.1 * 4
    modifier.after_step(model, 0.1, 3)
    assert torch.equal(model[1].weight, w), "not its turn"
    modifier.after_step(model, 0.1, 4)
    theta = torch.full((9,), 0.8, dtype=torch.float64)
    theta = (theta - t * tail_by_column(w, theta, 2)).clamp(0.5, 1.0)
    assert torch.allclose(model[1].keep_rates, theta)
    assert torch.allclose(model[1].weight, shrink_tail(w * theta, 2, t) / theta)
    assert torch.allclose(model[0].weight, shrink_tail(first, 2, t)), "its inputs are all kept"


@pytest.mark.parametrize(
    ("shape", "kernel", "block"), [((20000, 3), 0, 1), ((400, 3, 9, 9), 2, 3), ((900, 3, 40), 1, 4)]
)
def test_an_input_counts_as_often_as_its_keep_rate_says(shape: tuple[int, ...], kernel: int, block: int) -> None:
    torch.manual_seed(0)
    rates = torch.tensor([0.5, 0.8, 1.0])
    drawn = _drawn(torch.zeros(shape), rates.view(-1, *[1] * kernel), kernel, block)
    assert {*drawn.unique().tolist()} == {0.0, 1.0}
    assert torch.allclose(drawn.transpose(0, 1).reshape(3, -1).mean(1), rates, atol=0.02)
    if kernel == 2:  # also at the edge, where fewer blocks could begin
        assert torch.allclose(drawn[:, :, 0, 0].mean(0), rates, atol=0.08)


def test_the_gradient_of_the_rates_passes_through_the_draw() -> None:
    model, modifier = nn.Sequential(nn.Identity(), nn.Linear(1, 3), nn.Linear(3, 1)), LocalDrop()
    modifier.prepare(model)
    x = torch.tensor([[2.0]])
    model(x).sum().backward()
    expected = model[1](x)[0] * model[2].weight[0]
    assert torch.allclose(model[2].keep_rates.grad, expected)


def test_the_finished_model_is_the_mean_network_and_plain() -> None:
    model, modifier = network(), LocalDrop(lam=0.1, every=2, block=2)
    modifier.prepare(model)
    trained(model, modifier)
    inputs, before = torch.randn(5, 2, 4, 4), copy.deepcopy(model.state_dict())
    plain = modifier.finished(model)
    assert {*plain.state_dict()} == {*network().state_dict()}
    assert torch.allclose(plain.train()(inputs), model.eval()(inputs), atol=1e-6)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    model.train()
    assert not torch.equal(model(inputs), model(inputs)), "the model itself still draws"


def test_plain_dropout_drops_and_ends() -> None:
    model, modifier, inputs = network(), Dropout(0.5), torch.randn(5, 2, 4, 4)
    modifier.prepare(model)
    assert not torch.equal(model(inputs), model(inputs))
    assert torch.equal(model.eval()(inputs), network().eval()(inputs))
    assert torch.equal(modifier.finished(model).train()(inputs), network()(inputs))


def test_few_large_singular_values_are_left() -> None:
    found = {}
    for lam in (0.0, 1.0):
        model, modifier = network(), LocalDrop(lam=lam, head=2, every=2, keep=1.0, least=1.0)
        modifier.prepare(model)
        trained(model, modifier, 60)
        found[lam] = modifier.metrics(model)["rank"]
    assert found[1.0] < found[0.0] - 1


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: LocalDrop(lam=-1.0), "lam: expected a number of at least 0"),
        (lambda: LocalDrop(keep=0.3), "expected 0 < least <= keep <= 1, found 0.5 and 0.3"),
        (lambda: LocalDrop(every=0), "every: expected at least 1, found 0"),
        (lambda: LocalDrop(head=-1), "head: expected at least 0"),
        (lambda: Dropout(1.0), "p: expected 0 to below 1"),
        (lambda: LocalDrop().prepare(nn.Embedding(3, 3)), "LocalDrop: no layer found"),
        (lambda: train({"regularizer": "dropout"}, None), "unknown regularizer 'dropout'; expected dropout:P"),
        (lambda: train({"regularizer": "localdrop:lam"}, None), "unknown regularizer"),
        (lambda: train({"regularizer": "localdrop:x=1"}, None), "unknown setting 'x' of LocalDrop"),
        (lambda: train({"regularizer": "localdrop", "sparse": "1:2"}, None), "--sparse: does not go with Local"),
        (
            lambda: resolved(classes(), {"strategy": "asgrad", "regularizer": "localdrop", "model": "linear"}),
            "asgrad takes no LocalDrop.* use rounds",
        ),
    ],
)
def test_misuse_is_named(make: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        make()


@pytest.mark.parametrize("name", fast_ones(["swarm", "synchronous"], STRATEGIES))
def test_a_run_goes_on_bit_for_bit_under_every_method(name: str, tmp_path: Path) -> None:
    fields: dict[str, Any] = {"regularizer": "localdrop:lam=0.01,head=2,every=3", "strategy": name}
    fields |= {"optimizer": "sgd"} if name == "osp" else {}
    fields |= {"settings": {"local_size": "1"}} if name == "hierarchical" else {}
    train(fields, tmp_path / "whole")
    train(fields, tmp_path / "parts", stop_at=6)
    train(fields, tmp_path / "parts", resume=True)
    same_run(tmp_path / "whole", tmp_path / "parts")
    recorded = [row for row in rows(tmp_path / "whole") if row["kind"] == "evaluation"]
    assert all(0.5 <= row["keep_rate"] <= 1.0 and row["rank"] >= 1 for row in recorded)
    assert {*load_file(tmp_path / "whole" / "model.safetensors")} == {*MODELS["small"]().state_dict()}


def test_sparse_layers_with_dropout(tmp_path: Path) -> None:
    assert train({"regularizer": "dropout:0.2", "sparse": "1:2"}, None)["sparsity"] > 0.3
    assert NM(1, 2).acts_on_steps is False


def test_a_convolution_in_groups_has_no_keep_rates_and_its_mean_network_is_the_same() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Conv2d(4, 8, 3, groups=2), nn.Flatten(), nn.Linear(8 * 16, 3))
    drop, inputs = LocalDrop(every=1, head=1), torch.randn(5, 2, 8, 8)
    drop.prepare(model)
    model(inputs).sum().backward()
    drop.after_step(model, 0.1, 1)
    assert [name for name, _ in model.named_parameters() if "keep_rates" in name] == ["3.keep_rates"]
    torch.testing.assert_close(drop.finished(model)(inputs), model.eval()(inputs))
