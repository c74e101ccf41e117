"""A module as a flat vector, whatever its tensors look like."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from helpers import same
from swarmstep import LocalSGD, Synchronizer, average_gradients, simulate
from swarmstep.errors import UsageError
from swarmstep.runtime.flat import Flat


class Odd(nn.Module):
    """Everything that makes packing go wrong: dtypes, ties, frozen, unused, strided, buffers, caches."""

    def __init__(self) -> None:
        super().__init__()
        self.low = nn.Parameter(torch.randn(3, 2).to(torch.bfloat16))
        self.tied = nn.Linear(4, 4)
        self.twin = nn.Linear(4, 4)
        self.twin.weight = self.tied.weight
        self.frozen = nn.Parameter(torch.randn(5), requires_grad=False)
        self.unused = nn.Parameter(torch.randn(2))
        self.strided = nn.Parameter(torch.randn(3, 4).t())
        self.scalar = nn.Parameter(torch.tensor(2.0))
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("mask", torch.tensor([True, False]))
        self.register_buffer("cache", torch.randn(3), persistent=False)
        self.register_buffer("small", torch.randn(2).to(torch.float16))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.twin(self.tied(x))) @ self.strided
        return y.sum() * self.scalar + self.low.float().sum()


NAMES = (
    *("low", "unused", "strided", "scalar", "tied.weight", "tied.bias", "twin.bias", "norm.weight", "norm.bias"),
    *("small", "norm.running_mean", "norm.running_var"),
)


def odd() -> Odd:
    torch.manual_seed(0)
    return Odd()


def test_what_lies_in_x_and_where() -> None:
    model = odd()
    flat = Flat(model)
    assert flat.layout.names == NAMES
    assert flat.layout.sizes == (6, 2, 12, 1, 16, 4, 4, 4, 4, 2, 4, 4)
    assert flat.layout.parameters == 53
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    expected = torch.cat([tensors[name].detach().float().flatten() for name in NAMES])
    assert same(flat.read(), expected)
    assert flat.dtype == torch.float32


def test_what_is_not_in_x_stays_and_what_is_is_written() -> None:
    model = odd()
    flat = Flat(model)
    before = copy.deepcopy(dict(model.state_dict()) | {"cache": model.cache})
    flat.write(torch.arange(63.0))
    after = dict(model.state_dict()) | {"cache": model.cache}
    left = {"frozen", "mask", "cache", "norm.num_batches_tracked"}
    assert {name for name in after if same(after[name], before[name])} == left
    assert model.twin.weight is model.tied.weight
    assert same(flat.read(), torch.arange(63.0))
    assert same(model.strided.detach(), torch.arange(8.0, 20.0).view(4, 3))
    assert not model.strided.is_contiguous()


def test_reading_gives_a_new_vector_outside_autograd() -> None:
    model = odd()
    flat = Flat(model)
    x = flat.read()
    assert not x.requires_grad
    x.zero_()
    assert flat.read().abs().sum() > 0


def test_one_double_makes_x_double() -> None:
    model = nn.ParameterDict(
        {"a": nn.Parameter(torch.tensor([1 / 3], dtype=torch.float64)), "b": nn.Parameter(torch.tensor([0.1]))}
    )
    flat = Flat(model)
    assert flat.dtype == torch.float64
    assert flat.read()[0] == 1 / 3
    flat.write(torch.tensor([math.pi, math.e], dtype=torch.float64))
    assert model["a"].dtype == torch.float64
    assert model["a"].item() == math.pi
    assert model["b"].item() == torch.tensor(math.e).item()


shapes = st.lists(st.lists(st.integers(0, 3), max_size=3), min_size=1, max_size=5)
dtypes = st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16])


@given(shapes, st.data())
def test_round_trip(shapes: list[list[int]], data: st.DataObject) -> None:
    model = nn.Module()
    for i, shape in enumerate(shapes):
        tensor = torch.randn(shape).to(data.draw(dtypes))
        if data.draw(st.booleans()) and len(shape) > 1:
            tensor = tensor.transpose(0, -1)
        if data.draw(st.booleans()):
            model.register_buffer(f"t{i}", tensor)
        else:
            model.register_parameter(f"t{i}", nn.Parameter(tensor))
    if not list(model.parameters()):
        with pytest.raises(UsageError, match="no trainable parameter"):
            Flat(model)
        return
    flat = Flat(model)
    before = copy.deepcopy(model.state_dict())
    x = flat.read()
    assert x.numel() == sum(math.prod(shape) for shape in shapes)
    flat.write(torch.zeros_like(x))
    assert all(not tensor.any() for tensor in model.state_dict().values())
    flat.write(x)
    assert same(dict(model.state_dict()), dict(before))
    assert same(flat.read(), x)


def test_gradients_are_zero_where_there_are_none() -> None:
    model = odd()
    flat = Flat(model)
    model(torch.randn(6, 4)).backward()
    parameters = dict(model.named_parameters())
    expected = torch.cat(
        [
            torch.zeros(p.numel()) if p.grad is None else p.grad.float().flatten()
            for p in (parameters[name] for name in NAMES[:9])
        ]
    )
    assert model.unused.grad is None
    assert same(flat.gradient(), expected)
    assert expected.count_nonzero() > 20


def test_writing_gradients() -> None:
    model = odd()
    flat = Flat(model)
    flat.write_gradient(torch.arange(53.0))
    assert same(flat.gradient(), torch.arange(53.0))
    assert model.low.grad is not None
    assert model.low.grad.dtype == torch.bfloat16
    assert same(model.unused.grad, torch.tensor([6.0, 7.0]))
    assert model.frozen.grad is None
    torch.optim.SGD(model.parameters(), lr=1.0).step()  # the optimizer takes them


def test_average_gradients_counts_a_missing_one_as_zero() -> None:
    def train(comm: object) -> Tensor:
        model = nn.Linear(2, 1, bias=False)
        if comm.rank == 1:  # type: ignore[attr-defined]
            model.weight.grad = torch.tensor([[3.0, 6.0]])
        average_gradients(model, comm)  # type: ignore[arg-type]
        return model.weight.grad

    assert all(same(grad, torch.tensor([[1.0, 2.0]])) for grad in simulate(train, 3))


def test_a_parameter_unfrozen_later_is_named() -> None:
    model = odd()
    sync = simulate(lambda comm: Synchronizer(model, LocalSGD(), comm), 1)[0]
    model.frozen.requires_grad_(True)
    with pytest.raises(UsageError, match=r"'frozen' has been frozen, unfrozen, tied, added or removed"):
        sync.finish()


@pytest.mark.parametrize("change", ["freeze", "add", "drop a buffer"])
def test_other_changes_of_the_module_are_named(change: str) -> None:
    model = odd()
    flat = Flat(model)
    if change == "freeze":
        model.scalar.requires_grad_(False)
    elif change == "add":
        model.scalar2 = nn.Parameter(torch.zeros(1))
    else:
        model.norm.running_mean = None
    name = {"freeze": "scalar", "add": "scalar2", "drop a buffer": "norm.running_mean"}[change]
    for call in (flat.read, flat.gradient, lambda: flat.write(torch.zeros(63))):
        with pytest.raises(UsageError, match=f"'{name}'"):
            call()


def test_what_cannot_be_trained_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match="no trainable parameter"):
        Flat(nn.Linear(2, 2).requires_grad_(False))
    model = nn.Linear(2, 2)
    model.phase = nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    with pytest.raises(
        UsageError, match=r"'phase' is torch.complex64, torch.strided; expected dense real floating point"
    ):
        Flat(model)


def test_describe_names_every_parameter_and_buffer() -> None:
    described = Flat(odd()).describe()
    assert described["low"] == "bfloat16 [3, 2]"
    assert described["frozen"] == "float32 [5], not trained"
    assert described["mask"] == "bool [2], not trained"
    assert described["norm.running_var"] == "float32 [4]"
