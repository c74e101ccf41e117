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


def load(model: nn.Module) -> None:
    state = {name: value + 1 if value.is_floating_point() else value for name, value in model.state_dict().items()}
    model.load_state_dict(state, assign=True)


def swap(model: nn.Module) -> None:
    """As a moving average is swapped in."""
    model[0].weight.data = torch.full((8, 5), 7.0)  # type: ignore[index]


def exchange(model: nn.Module) -> None:
    for parameter in model.parameters():
        other = parameter.data.clone().mul_(2)
        parameter.data, other = other, parameter.data


def set_from_vector(model: nn.Module) -> None:
    vector = nn.utils.parameters_to_vector(model.parameters())
    nn.utils.vector_to_parameters(vector.detach() * 3, model.parameters())


@pytest.mark.parametrize("change", [load, swap, exchange, set_from_vector])
def test_tensors_given_other_memory_are_followed_by_copies_and_refused_by_views(change: Any) -> None:
    for views in (True, False):
        model = network()
        flat = Flat(model, views=views)
        change(model)
        changed = Flat(copy.deepcopy(model)).read()
        if views:
            with pytest.raises(UsageError, match=r"views: '0.weight' was given other memory .*views=False"):
                flat.open()
        else:
            assert same(flat.open(), changed)


@pytest.mark.parametrize("views", [True, False])
def test_a_round_before_backward_is_an_error_of_autograd(views: bool) -> None:
    def train(comm: Comm) -> None:
        model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
        sync = Synchronizer(model, LocalSGD(when=Every(1)), comm, Options(views=views))
        loss = model(torch.ones(1, 1)).sum()
        sync.step(loss)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()

    simulate(train, 2)


def saved_bytes(model: nn.Module) -> int:
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    return file.tell()


def test_by_default_nothing_about_the_memory_of_a_model_changes(tmp_path: Any) -> None:
    """Its storages, what was taken of it before, copies of it, and what writers of files make of it."""

    def train(comm: Comm) -> None:
        model = network()
        early, detached, size = model.state_dict(), model[0].weight.detach(), saved_bytes(copy.deepcopy(model))  # type: ignore[operator, index]
        pointers = [tensor.data_ptr() for tensor in model.state_dict().values()]
        sync = Synchronizer(model, LocalSGD(when=Every(1)), comm)
        for step in range(2):
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(float(comm.rank + step))
            sync.step(1.0)
        assert [tensor.data_ptr() for tensor in model.state_dict().values()] == pointers
        assert same(dict(early), dict(model.state_dict()))
        assert same(detached, model[0].weight.detach())  # type: ignore[index, operator]
        assert saved_bytes(copy.deepcopy(model)) == size
        save_model(model, str(tmp_path / f"{comm.rank}.safetensors"))

    simulate(train, 2)


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
        for given in ({}, {"views": True}, {"offload": "cpu"})
    ]
    assert same(found[0], found[1])
    assert same(found[0], found[2])


def test_a_round_changes_the_tensors_in_place_and_the_end_gives_them_memory_of_their_own() -> None:
    def train(comm: Comm) -> list[Tensor]:
        trainer = Trainer(LocalSGD(when=Every(2)), comm, views=True)
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
