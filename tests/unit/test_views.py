"""Tensors as views of one vector: where they may be, what stays as it was, and that nothing else changes."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from safetensors.torch import save_model
from torch import Tensor, nn

from helpers import VARIANTS, Trainer, network, run, same
from swarmstep import STRATEGIES, Comm, Every, LocalSGD, Options, Synchronizer, simulate
from swarmstep.errors import UsageError
from swarmstep.runtime.flat import Flat


def shares(model: nn.Module) -> bool:
    """Whether all floating-point parameters lie in one storage."""
    return len({p.untyped_storage().data_ptr() for p in model.parameters() if p.requires_grad}) == 1


def test_tensors_keep_their_values_shapes_and_identity() -> None:
    model = network()
    before, parameters = copy.deepcopy(model.state_dict()), list(model.parameters())
    flat = Flat(model, views=True)
    assert shares(model)
    assert same(dict(model.state_dict()), dict(before))
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    x = flat.open()
    assert same(x, Flat(network()).read())
    x += 1.0
    assert same(flat.read(), x)
    assert same(next(model.parameters()).detach(), next(iter(before.values())) + 1.0)
    flat.release()
    assert not shares(model)
    assert same(flat.read(), x)


def test_reading_is_a_copy_and_closing_another_vector_writes_it() -> None:
    flat = Flat(network(), views=True)
    kept = flat.open().clone()
    flat.read().zero_()
    assert same(flat.open(), kept)
    flat.close(kept * 2)
    assert same(flat.open(), kept * 2)


def test_gradients_optimizers_and_copies_work_on_views() -> None:
    found = []
    for views in (True, False):
        model = network()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        flat = Flat(model, views=views)
        for step in range(3):
            torch.manual_seed(step)
            optimizer.zero_grad()
            model(torch.randn(6, 5)).pow(2).sum().backward()
            optimizer.step()
        other = copy.deepcopy(model)
        file = io.BytesIO()
        torch.save(model.state_dict(), file)
        file.seek(0)
        found.append((flat.read(), Flat(other).read(), list(torch.load(file).values())))
        assert other[0].weight.untyped_storage().data_ptr() != model[0].weight.untyped_storage().data_ptr()  # type: ignore[index]
    assert same(found[0], found[1])


def test_weights_that_were_replaced_are_taken_in_again() -> None:
    model = network()
    flat = Flat(model, views=True)
    state = {name: value + 1 if value.is_floating_point() else value for name, value in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    assert same(flat.open(), Flat(model).read())
    assert shares(model)
    model[0].weight.data = torch.full((8, 5), 7.0)  # type: ignore[index]
    assert (flat.open()[:40] == 7.0).all()


def test_a_model_of_another_dtype_than_at_the_start_is_named() -> None:
    model = nn.Linear(2, 2)
    flat = Flat(model, views=True)
    model.half()
    with pytest.raises(UsageError, match=r"is torch.float16 on cpu, was torch.float32 on cpu"):
        flat.open()


class Tied(nn.Module):
    """Two parameters that are two names of the same memory."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.zeros(4))
        self.b = nn.Parameter(self.a.data[1:3])


def odd(kind: str) -> nn.Module:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    if kind == "dtypes":
        model[0].to(torch.bfloat16)
    if kind == "shared":
        model.share_memory()
    if kind == "strided":
        model[0].weight = nn.Parameter(torch.randn(2, 3).T)
    if kind == "overlapping":
        return Tied()
    return model


@pytest.mark.parametrize("kind", ["dtypes", "shared", "strided", "overlapping"])
def test_what_must_not_be_moved_is_copied(kind: str) -> None:
    model = odd(kind)
    pointers = [p.data_ptr() for p in model.parameters()]
    flat = Flat(model, views=True)
    x = flat.open()
    flat.close(x.mul_(2) if kind != "overlapping" else x)
    assert [p.data_ptr() for p in model.parameters()] == pointers


@pytest.mark.parametrize("name", STRATEGIES)
def test_views_copies_and_host_memory_give_the_same_weights(name: str) -> None:
    strategy = VARIANTS[name]
    found = [
        simulate(lambda comm, g=given: run(comm, strategy, 5, **g), 2)
        for given in ({}, {"views": False}, {"offload": "cpu"})
    ]
    assert same(found[0], found[1])
    assert same(found[0], found[2])


def test_a_round_changes_the_tensors_in_place_and_the_end_gives_them_memory_of_their_own() -> None:
    def train(comm: Comm) -> list[Tensor]:
        trainer = Trainer(LocalSGD(when=Every(2)), comm)
        pointers = [p.data_ptr() for p in trainer.model.parameters()]
        for _ in range(5):
            trainer.step()
        assert [p.data_ptr() for p in trainer.model.parameters()] == pointers
        assert shares(trainer.model)
        trainer.sync.finish()
        assert not shares(trainer.model)
        return list(trainer.model.parameters())

    simulate(train, 2)


def test_a_finished_model_is_saved_by_safetensors(tmp_path: Any) -> None:
    model = network()
    sync = Synchronizer(model, LocalSGD(), simulate(lambda comm: comm, 1)[0], Options())
    sync.finish()
    save_model(model, str(tmp_path / "model.safetensors"))


def test_fragments_lie_one_after_the_other_and_come_back_in_plain_order() -> None:
    model = nn.Sequential(nn.Linear(1, 2), nn.BatchNorm1d(2), nn.Linear(2, 1))
    flat = Flat(model, fragments=2, views=True)
    assert flat.fragments[0].names == ("0.weight", "0.bias", "2.weight", "2.bias")
    assert flat.fragments[1].names == ("1.weight", "1.bias", "1.running_mean", "1.running_var")
    assert [f.parameters for f in flat.fragments] == [7, 4]
    assert same(flat.in_plain_order(flat.read()), Flat(model).read())
    flat.open(1).zero_()
    assert not model[1].weight.any()
    assert not model[1].running_var.any()  # type: ignore[union-attr]
    flat.write(torch.ones(7), 0)
    assert (model[2].weight == 1).all()
    assert same(flat.read(), torch.cat([flat.read(0), flat.read(1)]))
