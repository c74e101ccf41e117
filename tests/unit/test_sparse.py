"""N:M sparsity: masks, gradients and decay against NumPy, limits, export, and runs under every method."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from helpers import same
from runs import MODELS, rows, same_run, train
from swarmstep import STRATEGIES, Comm, Every, InformedSwarm, LocalSGD, Options, Synchronizer, simulate
from swarmstep.errors import UsageError
from swarmstep.runtime.flat import Flat
from swarmstep.sparse import NM, export, flips, keep_largest, nm
from swarmstep.sparse.masking import NMMask
from swarmstep.train.optimizer import hidden_matrices
from whole_runs import fast_ones


def oracle(x: np.ndarray[Any, Any], n: int, m: int) -> np.ndarray[Any, Any]:
    """Return the mask of an array whose size m divides: sort each group by magnitude, then by position."""
    found = np.zeros(x.size, bool)
    for start in range(0, x.size, m):
        order = np.lexsort((np.arange(m), -np.abs(x.reshape(-1)[start : start + m])))
        found[start + order[:n]] = True
    return found.reshape(x.shape)


@given(st.integers(1, 9), st.data(), st.integers(0, 2**32))
def test_masks_keep_the_largest_and_of_equal_ones_the_first(m: int, data: st.DataObject, seed: int) -> None:
    n = data.draw(st.integers(1, m))
    x = np.random.default_rng(seed).integers(-3, 4, size=(7, m)).astype(np.float32)  # many are equal
    mask = keep_largest(torch.from_numpy(x), n)
    assert np.array_equal(mask.numpy(), oracle(x, n, m))
    assert (mask.sum(1) == n).all()


def convolution() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3))


def test_a_layer_computes_with_the_masked_weight_in_groups_of_a_flattened_row() -> None:
    model, inputs = convolution(), torch.randn(5, 4, 4, 4)
    masked = copy.deepcopy(model)
    for layer in (masked[0], masked[3]):
        weight = layer.weight.detach().numpy()
        layer.weight.data = torch.from_numpy(weight * oracle(weight, 2, 4))
    nm(model)
    assert torch.equal(model(inputs), masked(inputs))
    assert torch.equal(model.eval()(inputs), masked(inputs))


@pytest.mark.parametrize("decay", [0.0, 2e-4, 0.3])
def test_the_gradient_is_that_of_the_masked_weight_and_the_decay_of_the_others(decay: float) -> None:
    torch.manual_seed(0)
    model, inputs, targets = nn.Linear(8, 3), torch.randn(5, 8), torch.randn(5, 3)
    weight = model.weight.detach().clone().requires_grad_()
    mask = torch.from_numpy(oracle(weight.detach().numpy(), 2, 4))
    masked = (weight * mask).detach().requires_grad_()
    mse_loss(inputs @ masked.t() + model.bias.detach(), targets).backward()
    nm(model, decay=decay)
    mse_loss(model(inputs), targets).backward()
    (dense,) = (p for p in model.parameters() if p.ndim == 2)
    assert dense.grad is not None
    assert masked.grad is not None
    expected = masked.grad + np.float32(decay) * ((~mask) * weight.detach())
    assert torch.allclose(dense.grad, expected, rtol=1e-6, atol=1e-8)
    assert dense.grad[~mask].abs().max() > 1e-3  # pruned weights learn


def dense_weights(model: nn.Module) -> Tensor:
    (weight,) = (p for p in model.parameters() if p.ndim == 2)
    return weight.detach().clone()


def test_without_a_loss_pruned_weights_shrink_by_lr_decay_and_others_stay() -> None:
    torch.manual_seed(0)
    model, lr, decay = nn.Linear(64, 16, bias=False), 0.5, 0.25
    nm(model, 2, 4, decay)
    optimizer, start = torch.optim.SGD(model.parameters(), lr), dense_weights(model)
    mask = torch.from_numpy(oracle(start.numpy(), 2, 4))
    for step in range(1, 6):
        optimizer.zero_grad()
        (model(torch.ones(1, 64)) * 0).sum().backward()
        optimizer.step()
        factor = torch.where(mask, 1.0, (1 - lr * decay) ** step)
        assert torch.equal(dense_weights(model)[mask], start[mask])
        assert torch.allclose(dense_weights(model), start * factor, rtol=1e-6, atol=0)
    assert flips(model) == 0


def trained(model: nn.Module, steps: int = 20) -> list[Tensor]:
    """Return the parameters after some steps with momentum."""
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        optimizer.zero_grad()
        shape = (6, 4, 4, 4) if isinstance(model, nn.Sequential) else (6, 8)
        mse_loss(model(torch.randn(shape, generator=generator)), torch.ones(6, 3)).backward()
        optimizer.step()
    return [p.detach().clone() for p in model.parameters()]


def test_m_of_m_is_dense_training_bit_for_bit() -> None:
    pruned = convolution()
    nm(pruned, 4, 4, decay=0.3)
    shapes = {tuple(p.shape): p for p in trained(convolution())}
    for parameter in trained(pruned):
        assert torch.equal(parameter, shapes[tuple(parameter.shape)])


def test_flips_are_counted_from_step_to_step() -> None:
    model = nn.Linear(8, 3)
    nm(model)
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    masks, generator = [oracle(dense_weights(model).numpy(), 2, 4)], torch.Generator().manual_seed(0)
    for _ in range(10):
        model.train()
        mse_loss(model(torch.randn(4, 8, generator=generator)), torch.ones(4, 3)).backward()
        optimizer.step()
        masks.append(oracle(dense_weights(model).numpy(), 2, 4))
        model.eval()(torch.ones(1, 8))  # an evaluation counts nothing
    expected = sum(int((a != b).sum()) for a, b in itertools.pairwise(masks[:-1]))
    assert flips(model) == expected > 0


def test_the_exported_model_is_plain_and_has_real_zeros() -> None:
    model, inputs = convolution(), torch.randn(5, 4, 4, 4)
    nm(model)
    trained(model)
    before = copy.deepcopy(model.state_dict())
    plain = export(model)
    assert {*plain.state_dict()} == {*convolution().state_dict()}
    assert [type(layer) for layer in plain] == [type(layer) for layer in convolution()]  # type: ignore[attr-defined]
    assert torch.equal(plain(inputs), model.eval()(inputs))
    for name in ("0.weight", "3.weight"):
        groups = plain.state_dict()[name].reshape(-1, 4)
        assert ((groups == 0).sum(1) == 2).all()
    assert same(before, model.state_dict()), "the model itself was changed"
    with pytest.raises(UsageError, match=r"semi_structured: expected a CUDA device .* found cpu"):
        export(model, semi_structured=True)


def test_which_layers_are_pruned() -> None:
    first = nn.Conv2d(3, 8, 3)  # rows of 27
    tied, frozen = nn.Linear(8, 8), nn.Linear(8, 8).requires_grad_(False)
    other = nn.Linear(8, 8)
    other.weight = tied.weight
    head, body = nn.Linear(8, 8), nn.Linear(8, 8)
    model = nn.ModuleDict({"first": first, "tied": tied, "other": other, "frozen": frozen})
    model.update({"body": body, "head": head})
    nm(model, dense=("head",))
    masked = [name for name, module in model.named_modules() if isinstance(module, NMMask)]
    assert masked == ["body.parametrizations.weight.0"]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: NM(3, 2), "expected 1 <= N <= M <= 255, found 3:2"),
        (lambda: NM(0, 4), "found 0:4"),
        (lambda: NM(2, 256), "found 2:256"),
        (lambda: NM(decay=-1.0), "decay: expected a number of at least 0, found -1.0"),
        (lambda: nm(nn.Linear(6, 2)), r"no layer to prune: expected one whose rows 4 divides, found  \[2, 6\]"),
        (lambda: nm(nn.Embedding(4, 4)), "NM: no layer found; expected a linear or convolution layer"),
        (lambda: nm(nn.Linear(8, 2), dense=("x",)), "dense: 'x' is no layer"),
        (lambda: NM().prepare(_pruned()), "pruned already"),
    ],
)
def test_misuse_is_named(make: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        make()


def _pruned() -> nn.Module:
    model = nn.Linear(8, 2)
    nm(model)
    return model


def test_muon_still_tells_the_last_layer_and_embeddings_apart() -> None:
    model = nn.Sequential(nn.Embedding(8, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4))
    plain = [tuple(p.shape) for p in hidden_matrices(model)]
    nm(model)
    assert [tuple(p.shape) for p in hidden_matrices(model)] == plain == [(8, 8), (8, 8)]


def rounds(comm: Comm, views: bool, probe: bool) -> tuple[Tensor, Tensor, int]:
    """Return the weights after a round, the mask that the layer then computes with, and the flips."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    nm(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.3)
    generator = torch.Generator().manual_seed(comm.rank)

    def loss(module: nn.Module, step: int) -> Tensor:
        return ((module(torch.ones(4, 8)) - 1) ** 2).mean(1)

    strategy = InformedSwarm(when=Every(4)) if probe else LocalSGD(when=Every(4))
    sync = Synchronizer(model, strategy, comm, Options(views=views, probe=loss if probe else None, probe_cost=0.1))
    for _ in range(8):
        optimizer.zero_grad()
        found = mse_loss(model(torch.randn(6, 8, generator=generator)), torch.ones(6, 3))
        found.backward()
        optimizer.step()
        sync.step(found)
    return Flat(model).read(), model[0].weight.detach() != 0, flips(model)


@pytest.mark.parametrize("views", [False, True])
@pytest.mark.parametrize("probe", [False, True])
def test_rounds_average_dense_weights_and_all_compute_with_the_mask_of_the_mean(views: bool, probe: bool) -> None:
    found = simulate(lambda comm: rounds(comm, views, probe), 3)
    for weights, mask, count in found:
        assert torch.equal(weights, found[0][0])
        assert torch.equal(mask, found[0][1])
        assert count > 0
    first = found[0][0][16:144].view(16, 8).numpy()  # behind the bias
    assert np.array_equal(found[0][1].numpy(), oracle(first, 2, 4))
    assert (first != 0).all(), "the weights are dense"


RUN = {"sparse": "1:2,0.001"}


@pytest.mark.parametrize("name", fast_ones(["local-sgd", "swarm", "osp"], STRATEGIES))
def test_a_run_goes_on_bit_for_bit_under_every_method(name: str, tmp_path: Path) -> None:
    fields = {**RUN, "strategy": name, **({"optimizer": "sgd"} if name == "osp" else {})}
    fields |= {"settings": {"local_size": "1"}} if name == "hierarchical" else {}
    summary = train(fields, tmp_path / "whole")
    train(fields, tmp_path / "parts", stop_at=6)
    train(fields, tmp_path / "parts", resume=True)
    same_run(tmp_path / "whole", tmp_path / "parts")
    assert 0.3 < summary["sparsity"] < 0.5  # of all parameters, biases and norms included
    recorded = [row["mask_flips"] for row in rows(tmp_path / "whole") if row["kind"] == "evaluation"]
    assert recorded == sorted(recorded)
    saved = load_file(tmp_path / "whole" / "model.safetensors")
    assert {*saved} == {*MODELS["small"]().state_dict()}
    assert ((saved["0.weight"].view(-1, 2) == 0).sum(1) == 1).all()


@pytest.mark.parametrize("name", ["asgrad", "quorum"])
def test_methods_without_rounds_train_it_too(name: str, tmp_path: Path) -> None:
    from runs import classes, resolved
    from swarmstep.train.in_process import simulated
    from swarmstep.train.job import Job

    workload = classes()
    config = resolved(workload, {**RUN, "strategy": name, "model": "linear"})
    simulated(config, workload, Job(out=tmp_path / "run", quiet=True))
    saved = load_file(tmp_path / "run" / "model.safetensors")
    assert ((saved["weight"].view(-1, 2) == 0).sum(1) == 1).all()


@pytest.mark.parametrize("spec", ["2", "2:x", "2:4,x", ":4", "2:4,0.1,3", "nm:2:4", ""])
def test_a_text_that_is_no_sparsity(spec: str) -> None:
    with pytest.raises(UsageError, match=r"unknown sparsity .* expected N:M\[,DECAY\]"):
        train({"sparse": spec}, None)
