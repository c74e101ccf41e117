"""The probe's private copy: what it shares with the model, and what follows it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from model_zoo import ZOO
from swarmstep import Comm, Every, InformedSwarm, Options, Synchronizer, simulate
from swarmstep.errors import UsageError
from swarmstep.runtime.model_copy import ModelCopy
from swarmstep.runtime.module_tensors import module_tensors


class Model(nn.Module):
    """A frozen and a trained layer, buffers of several kinds, and attributes that the forward pass reads."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.head = nn.Linear(4, 4).requires_grad_(False), nn.Linear(4, 2)
        self.register_buffer("count", torch.tensor(0))
        self.register_buffer("mask", torch.tensor([True, True, True, True]))
        self.register_buffer("cache", torch.zeros(2), persistent=False)
        self.register_buffer("limit", torch.full((4,), torch.inf))
        self.temperature, self.kind = 1.0, "soft"

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.base(x) * self.mask) / self.temperature


def load_frozen(model: Any) -> None:
    model.load_state_dict({**model.state_dict(), "base.weight": torch.full((4, 4), 7.0)})


def swap_frozen(model: Any) -> None:
    model.base.weight.data = torch.full((4, 4), 3.0)


def replace_frozen(model: Any) -> None:
    model.base.weight = nn.Parameter(torch.full((4, 4), 2.0), requires_grad=False)


def count(model: Any) -> None:
    model.count += 5


def mask(model: Any) -> None:
    model.mask[0] = False


def cache_of_another_shape(model: Any) -> None:
    model.cache = torch.arange(9.0)


def limit(model: Any) -> None:
    model.limit.fill_(-1.0)


def attributes(model: Any) -> None:
    model.temperature, model.kind = 0.5, "hard"


CHANGES = [load_frozen, swap_frozen, replace_frozen, count, mask, cache_of_another_shape, limit, attributes]


def everything(model: Any) -> list[Any]:
    tensors = [*model.parameters(), *model.buffers()]
    return [*(tensor.detach().clone() for tensor in tensors), model.temperature, model.kind]


@pytest.mark.parametrize("change", CHANGES)
def test_the_copy_follows_the_model_in_all_but_trained_weights(change: Callable[[Any], None]) -> None:
    model = Model()
    copied = ModelCopy(model)
    change(model)
    copied.follow()
    for one, other in zip(everything(model), everything(copied.module), strict=True):
        assert torch.equal(one, other) if isinstance(one, Tensor) else one == other
    assert not copied.module.training
    assert model.training
    with torch.no_grad():
        model.head.weight.add_(1.0)
    copied.follow()
    assert not torch.equal(model.head.weight, copied.module.head.weight)  # type: ignore[union-attr, arg-type]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("delay", [0, 2])
def test_a_probe_sees_what_the_model_has(change: Callable[[Any], None], delay: int) -> None:
    seen: dict[int, list[Any]] = {0: [], 1: []}

    def train(comm: Comm) -> None:
        model = Model()

        def probe(module: nn.Module, step: int) -> Tensor:
            seen[comm.rank] = everything(module)
            return module(torch.ones(1, 4)).square().sum()

        options = Options(probe=probe, probe_cost=0.1, delay=delay)
        sync = Synchronizer(model, InformedSwarm(when=Every(1)), comm, options)
        change(model)
        for _ in range(2 + delay):
            sync.step(0.5)
        expected = everything(model)
        places = [i for i, value in enumerate(expected) if not isinstance(value, Tensor) or value.shape != (2, 4)]
        for i in places[1:]:  # all but the trained weights; its bias stands still
            one, other = expected[i], seen[comm.rank][i]
            assert torch.equal(one, other) if isinstance(one, Tensor) else one == other

    simulate(train, 2)


def test_frozen_weights_are_not_held_twice() -> None:
    model = nn.Sequential(nn.Linear(50, 50).requires_grad_(False), nn.Linear(50, 1))
    copied = ModelCopy(model).module
    assert copied[0].weight is model[0].weight  # type: ignore[index]
    assert copied[1].weight is not model[1].weight  # type: ignore[index]


@pytest.mark.parametrize("kind", ZOO)
@pytest.mark.filterwarnings("ignore")
def test_every_kind_of_model_can_be_copied_after_a_step(kind: str) -> None:
    model, inputs = ZOO[kind].make(), ZOO[kind].inputs()
    ZOO[kind].output(model(inputs)).sum().backward()
    copied = ModelCopy(model)
    copied.follow()
    torch.manual_seed(0)
    expected = ZOO[kind].output(model.eval()(inputs))
    torch.manual_seed(0)
    assert torch.equal(ZOO[kind].output(copied.module(inputs)), expected)
    trained = [p for p in copied.module.parameters() if p.requires_grad]
    own = {id(p) for p in model.parameters()}
    assert not any(id(p) in own for p in trained)
    assert {*module_tensors(model)} == {*module_tensors(copied.module)}


def test_what_cannot_be_copied_is_named() -> None:
    model = nn.Linear(2, 2)
    model.lock = threading.Lock()  # type: ignore[assignment]
    with pytest.raises(UsageError, match=r"the probe needs a copy of the model, and copy.deepcopy\(model\) fails"):
        ModelCopy(model)


def test_a_module_that_is_added_later_is_named() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    copied = ModelCopy(model)
    model.append(nn.ReLU())
    with pytest.raises(UsageError, match="submodule '1' was added or removed"):
        copied.follow()


class Merging(nn.Module):
    """LoRA that merges its update into the frozen weight in `eval`, and takes it out in `train`."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 2), requires_grad=False)
        self.update, self.merged = nn.Parameter(torch.ones(2, 2)), False

    def train(self, mode: bool = True) -> Merging:
        if self.merged == mode:
            self.weight.data += self.update.data * (-1 if mode else 1)
            self.merged = not mode
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.weight if self.merged else self.weight + self.update)


def test_a_module_that_changes_frozen_weights_in_eval_keeps_its_own() -> None:
    def train(comm: Comm) -> float:
        model, seen = Merging(), []

        def probe(module: nn.Module, step: int) -> Tensor:
            seen.append(float(module(torch.ones(1, 2)).sum()))
            module.eval()
            module.train()
            return module(torch.ones(1, 2)).sum()

        sync = Synchronizer(model, InformedSwarm(when=Every(1)), comm, Options(probe=probe, probe_cost=0.1))
        for step in range(3):
            with torch.no_grad():
                model.update.fill_(2.0 + step)
            sync.step(1.0)
            assert torch.equal(model.weight, torch.ones(2, 2))
        assert seen[0] == 8.0
        return float(model.weight.sum())

    assert simulate(train, 2) == [4.0, 4.0]
