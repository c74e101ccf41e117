"""Between the construction and the first step: weights loaded too late, wrappers, tensors of any kind."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers import network, same
from swarmstep import Comm, DiLoCo, Every, LocalSGD, Options, Synchronizer, Synchronous, simulate
from swarmstep.comm.codecs import Int8
from swarmstep.errors import UsageError

Load = Callable[[nn.Module], object]


def whole(model: nn.Module) -> None:
    model.load_state_dict({name: torch.ones_like(tensor) for name, tensor in model.state_dict().items()})


def part(model: nn.Module) -> None:
    layer = model[4]  # type: ignore[index]
    layer.load_state_dict({name: torch.ones_like(tensor) for name, tensor in layer.state_dict().items()})


def assigned(model: nn.Module) -> None:
    model.load_state_dict({n: torch.ones_like(t) for n, t in model.state_dict().items()}, assign=True)


@torch.no_grad()
def copied(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.copy_(torch.ones_like(parameter))


def set_from_vector(model: nn.Module) -> None:
    vector = nn.utils.parameters_to_vector(model.parameters()).detach()
    nn.utils.vector_to_parameters(torch.ones_like(vector), model.parameters())


def initialized(model: nn.Module) -> None:
    model.apply(lambda module: nn.init.ones_(module.weight) if isinstance(module, nn.Linear) else None)


LATE = [whole, part, assigned]
LOADS = [*LATE, copied, set_from_vector, initialized]


def backward(model: nn.Module) -> Tensor:
    loss = model(torch.randn(4, 5)).square().mean()
    loss.backward()
    return loss.detach()


@pytest.mark.parametrize("load", LATE)
@pytest.mark.parametrize(
    "made",
    [DiLoCo(when=Every(1)), LocalSGD(when=Every(2)), Synchronous()],
    ids=["diloco", "local-sgd", "synchronous"],
)
def test_weights_loaded_after_the_construction_are_an_error(load: Load, made: Any) -> None:
    def train(comm: Comm) -> str:
        model = network()
        sync = Synchronizer(model, made, comm, Options(codec=Int8()))
        load(model)
        loss = backward(model)
        with pytest.raises(UsageError) as caught:
            (sync.reduce() if isinstance(made, Synchronous) else sync.step(loss))
        return str(caught.value)

    for said in simulate(train, 2):
        assert "was loaded after the Synchronizer was made and before the first step; load weights before" in said


def test_weights_that_are_loaded_and_never_trained_are_an_error() -> None:
    def train(comm: Comm) -> None:
        model = network()
        sync = Synchronizer(model, DiLoCo(when=Every(1)), comm)
        whole(model)
        with pytest.raises(UsageError, match=r"parameter '0.weight' was loaded"):
            sync.step(1.0)

    simulate(train, 2)


@pytest.mark.parametrize("load", LOADS)
def test_weights_loaded_before_the_construction_are_where_anchors_begin(load: Load) -> None:
    """Nobody trains: whatever the outer optimizer, the weights stay."""

    def train(comm: Comm) -> None:
        model = network()
        load(model)
        before = copy.deepcopy(dict(model.state_dict()))
        sync = Synchronizer(model, DiLoCo(when=Every(1)), comm)
        for _ in range(3):
            sync.step(1.0)
        assert same(dict(model.state_dict()), before)

    simulate(train, 2)


@pytest.mark.parametrize("late", [True, False])
def test_a_checkpoint_is_loaded_before_or_after(late: bool) -> None:
    def step(model: nn.Module, sync: Synchronizer, seed: int) -> None:
        torch.manual_seed(seed)
        model.zero_grad()
        loss = backward(model)
        with torch.no_grad():
            for p in model.parameters():
                p.sub_(p.grad, alpha=0.1)  # type: ignore[arg-type]
        sync.step(loss)

    def train(comm: Comm) -> None:
        model = network()
        sync = Synchronizer(model, DiLoCo(when=Every(2)), comm)
        for seed in range(3):
            step(model, sync, 10 * seed + comm.rank)
        saved = copy.deepcopy((model.state_dict(), sync.state_dict()))
        for seed in range(3, 6):
            step(model, sync, 10 * seed + comm.rank)
        other = network(1)
        if not late:  # all ranks take rank 0's weights at the construction, so that their own are loaded again
            other.load_state_dict(saved[0])
        again = Synchronizer(other, DiLoCo(when=Every(2)), comm)
        other.load_state_dict(saved[0])
        again.load_state_dict(saved[1])
        for seed in range(3, 6):
            step(other, again, 10 * seed + comm.rank)
        assert same(dict(other.state_dict()), dict(model.state_dict()))

    simulate(train, 2)


def test_weights_swapped_and_swapped_back_before_the_first_step_are_fine() -> None:
    """An evaluation of a moving average at step 0."""

    def train(comm: Comm) -> None:
        model = network()
        sync = Synchronizer(model, LocalSGD(when=Every(1)), comm)
        kept = copy.deepcopy(model.state_dict())
        whole(model)
        model.eval()(torch.randn(4, 5))
        model.train().load_state_dict(kept)
        sync.step(backward(model))
        whole(model)  # later swaps are the caller's business
        model.load_state_dict(kept)
        sync.step(backward(model))

    simulate(train, 2)


def hooks(model: nn.Module) -> int:
    return sum(len(module._load_state_dict_post_hooks) for module in model.modules())


def test_copies_hold_no_hooks_that_act_and_the_first_step_removes_all() -> None:
    def train(comm: Comm) -> None:
        model = network()
        sync = Synchronizer(model, LocalSGD(when=Every(1)), comm)
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            whole(other)
            backward(other)
        sync.step(backward(model))
        assert hooks(model) == 0

    simulate(train, 1)


def clamp(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.data.clamp_(-0.01, 0.01)


def normalize(model: nn.Module) -> None:
    with torch.no_grad():
        model[0].weight.div_(model[0].weight.norm(dim=1, keepdim=True))  # type: ignore[index, operator, union-attr]


def optimize_in_backward(model: nn.Module) -> None:
    def step(parameter: Tensor) -> None:
        assert parameter.grad is not None
        parameter.data.sub_(parameter.grad, alpha=0.1)

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(step)


@pytest.mark.parametrize("change", [clamp, normalize, optimize_in_backward, copied])
@pytest.mark.parametrize("fullgraph", [False, True])
def test_weights_that_training_itself_changes_are_fine(change: Load, fullgraph: bool) -> None:
    """Before the first forward pass as in a WGAN, in the backward pass; also with a compiled model."""

    def train(comm: Comm) -> None:
        model = network()
        sync = Synchronizer(model, LocalSGD(when=Every(1)), comm)
        forward: Any = torch.compile(model, fullgraph=True, backend="eager") if fullgraph else model
        for _ in range(2):
            change(model)
            loss = forward(torch.randn(4, 5)).square().mean()
            loss.backward()
            sync.step(loss)

    simulate(train, 2)


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.filterwarnings("ignore")
def test_data_parallel_is_refused_with_what_to_do(inside: bool) -> None:
    wrapped = nn.DataParallel(nn.Linear(2, 2))
    model: nn.Module = nn.Sequential(wrapped) if inside else wrapped
    name = "module '0'" if inside else "the model"
    with pytest.raises(UsageError, match=f"{name} is a DataParallel, which synchronizes .*wrapper.module"):
        simulate(lambda comm: Synchronizer(model, LocalSGD(), comm), 1)


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyLinear(3))


class Holding(nn.Module):
    def __init__(self, buffer: Tensor) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.register_buffer("held", buffer)


class Rotation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.phase = nn.Parameter(torch.ones(2, dtype=torch.complex64))


@pytest.mark.filterwarnings("ignore:Lazy modules")
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lazy, "parameter '0.weight' has no shape yet (a lazy module); run one batch through the model"),
        (lambda: nn.Linear(2, 2, device="meta"), "parameter 'weight' is on the meta device; give it memory"),
        (
            lambda: Holding(torch.zeros(1).expand(4)),
            "buffer 'held' is expanded: several of its elements share memory",
        ),
        (lambda: Holding(torch.zeros(2, 2).to_sparse()), "buffer 'held' is torch.float32, torch.sparse_coo"),
        (lambda: Rotation(), "parameter 'phase' is torch.complex64"),
        (lambda: nn.Linear(2, 2).to(torch.float8_e4m3fn), "parameter 'weight' is trained as torch.float8_e4m3fn"),
        (lambda: nn.Linear(2, 2).requires_grad_(False), "the model has no trainable parameter"),
    ],
)
def test_what_cannot_be_synchronized_is_refused_by_name(make: Callable[[], nn.Module], said: str) -> None:
    model = make()
    with pytest.raises(UsageError) as caught:
        simulate(lambda comm: Synchronizer(model, LocalSGD(), comm), 1)
    assert said in str(caught.value)


def test_a_buffer_that_takes_another_shape_is_named() -> None:
    def train(comm: Comm) -> None:
        model = Holding(torch.zeros(1))
        sync = Synchronizer(model, LocalSGD(when=Every(1)), comm)
        model.held = torch.zeros(5)
        with pytest.raises(UsageError, match=r"'held' has 5 elements and had 1 .* run one through the model"):
            sync.step(1.0)

    simulate(train, 1)


@pytest.mark.parametrize(
    "held",
    [
        torch.full((2, 2), -torch.inf),
        torch.tensor(torch.nan),
        torch.zeros(0),
        torch.ones(3, dtype=torch.complex64),
        torch.tensor([True, False]),
        torch.arange(3),
        torch.ones(4).to(torch.float8_e4m3fn),
        torch.ones(4, dtype=torch.float16),
    ],
    ids=lambda held: str(held.dtype) + str(list(held.shape)),
)
def test_buffers_of_any_kind_start_alike_and_disturb_nobody(held: Tensor) -> None:
    def train(comm: Comm) -> Tensor:
        model = Holding(held.clone() if comm.rank == 0 else torch.zeros_like(held))
        if held.is_floating_point() and held.element_size() > 1 and not held.isfinite().all():
            model.held.copy_(held)  # whether it takes part is agreed on
        sync = Synchronizer(model, DiLoCo(when=Every(1)), comm)
        for step in range(3):
            with torch.no_grad():
                model.layer.weight.add_(step + comm.rank)
            sync.step(1.0)
        sync.finish()
        assert model.layer.weight.isfinite().all()
        return model.held

    for found in simulate(train, 2):
        assert found.dtype == held.dtype
        bits = [tensor.reshape(-1).view(torch.uint8) for tensor in (found, held)]
        assert torch.equal(*bits)


def test_frozen_weights_are_sent_only_where_they_differ() -> None:
    def train(comm: Comm, differ: bool) -> tuple[int, float]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(50, 50), nn.Linear(50, 1))
        model[0].requires_grad_(False)
        if differ and comm.rank == 1:
            model[0].bias.add_(1.0)
        sync = Synchronizer(model, LocalSGD(), comm)
        return sync.bytes_sent, float(model[0].bias.sum())

    equal, unequal = (simulate(lambda comm, d=d: train(comm, d), 2) for d in (False, True))
    assert equal[0][1] == equal[1][1] == unequal[1][1]
    assert sum(sent for sent, _ in unequal) - sum(sent for sent, _ in equal) == 50 * 4
    assert max(sent for sent, _ in equal) < 1000  # the trained layer has 51 elements
