"""The inner optimizers: who gets Muon, what it does, weight decay, warm-up, clipping; several in one loop."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from helpers import same
from runs import WORKLOADS, resolved, tiny, train
from swarmstep import Comm, Every, LocalSGD, Options, SlowMo, Synchronizer, simulate
from swarmstep.errors import UsageError
from swarmstep.seeding import mix, seed_torch
from swarmstep.train.config import Config
from swarmstep.train.feed import Feed
from swarmstep.train.local_step import clip_gradient, learning_rate
from swarmstep.train.optimizer import LocalOptimizer, build_optimizer, hidden_matrices
from swarmstep.when import QuadraticRule

LR = 0.01


def config(**fields: Any) -> Config:
    wish = {"optimizer": "muon", "lr": LR, "weight_decay": 0.0, **fields}
    return resolved(WORKLOADS["classes"](), wish)


# Muon

SHAPES = [(24, 40), (40, 24), (32, 32)]


def moved(gradient: Tensor, *, lr: float = LR, weight: Tensor | None = None, decay: float = 0.0) -> Tensor:
    """Return what one step of Muon adds to a hidden matrix with this gradient."""
    rows, columns = gradient.shape
    model = nn.Sequential(nn.Linear(columns, rows, bias=False), nn.Linear(rows, 2))
    nn.init.zeros_(model[0].weight)
    if weight is not None:
        model[0].weight.data.copy_(weight)
    before = model[0].weight.detach().clone()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    model[0].weight.grad = gradient.clone()
    build_optimizer(model, config(weight_decay=decay)).step(lr)
    return model[0].weight.detach() - before


def rotation(size: int, seed: int) -> Tensor:
    return torch.linalg.qr(torch.randn(size, size, generator=torch.Generator().manual_seed(seed)))[0]


def gradient(shape: tuple[int, int], seed: int = 0) -> Tensor:
    """Return a matrix whose singular values lie between 0.2 and 1."""
    rows, columns = shape
    size = min(shape)
    values = torch.linspace(0.2, 1, size)
    return rotation(rows, seed)[:, :size] @ values.diag() @ rotation(columns, seed + 1)[:size]


def close(one: Tensor, other: Tensor) -> None:
    """Compare two updates as bfloat16 allows: Newton-Schulz is computed in it."""
    assert float((one - other).norm() / other.norm()) < 0.03


@pytest.mark.parametrize("shape", SHAPES)
def test_muon_turns_with_its_gradient(shape: tuple[int, int]) -> None:
    g, q, r = gradient(shape), rotation(shape[0], 7), rotation(shape[1], 8)
    close(moved(q @ g @ r), q @ moved(g) @ r)


@pytest.mark.parametrize("shape", SHAPES)
def test_muon_does_not_look_at_the_size_of_a_gradient(shape: tuple[int, int]) -> None:
    g = gradient(shape)
    for factor in (2.0**-12, 0.5, 2.0**10):  # powers of two are exact in any format
        assert moved(factor * g).equal(moved(g))
    close(moved(0.013 * g), moved(g))
    close(moved(-7 * g), -moved(g))


@pytest.mark.parametrize("shape", SHAPES)
def test_five_steps_of_newton_and_schulz_make_singular_values_of_about_one(shape: tuple[int, int]) -> None:
    """And with them an update of 0.2 lr a weight, which is about AdamW's."""
    update = moved(gradient(shape))
    values = torch.linalg.svdvals(update) / (0.2 * LR * math.sqrt(max(shape)))
    assert float(values.min()) > 0.65
    assert float(values.max()) < 1.25
    assert float(update.square().mean().sqrt()) == pytest.approx(0.2 * LR * math.sqrt(0.75), rel=0.05)


def test_muon_decays_weights_by_the_given_rate() -> None:
    g, weight = gradient((24, 40)), torch.randn(24, 40, generator=torch.Generator().manual_seed(3))
    expected = moved(g, weight=weight) - LR * 0.5 * weight
    torch.testing.assert_close(moved(g, weight=weight, decay=0.5), expected, rtol=1e-4, atol=1e-6)


# Who gets which


def names(model: nn.Module, found: list[nn.Parameter]) -> set[str]:
    wanted = {id(parameter) for parameter in found}
    return {name for name, parameter in model.named_parameters() if id(parameter) in wanted}


def parts(model: nn.Module, optimizer: str = "muon") -> dict[tuple[str, float], set[str]]:
    """Return who has which parameters: (optimizer, weight decay) -> names."""
    built = build_optimizer(model, config(optimizer=optimizer, weight_decay=0.1))
    groups = [(part, group) for part in built.parts for group in part.param_groups]
    return {(type(part).__name__, group["weight_decay"]): names(model, group["params"]) for part, group in groups}


def test_hidden_matrices_are_muons_and_the_rest_is_adamws() -> None:
    inner = {f"blocks.0.{name}.weight" for name in ("attend", "out", "up", "down")}
    norms = {
        f"{name}.{part}" for name in ("blocks.0.norm_1", "blocks.0.norm_2", "norm") for part in ("weight", "bias")
    }
    assert parts(tiny()) == {
        ("Muon", 0.1): inner,
        ("AdamW", 0.1): {"embedding.weight", "positions.weight"},  # the head is the embedding
        ("AdamW", 0.0): norms,
    }
    assert parts(tiny(), "adamw") == {
        ("AdamW", 0.1): inner | {"embedding.weight", "positions.weight"},
        ("AdamW", 0.0): norms,
    }


def test_convolutions_the_last_layer_and_what_is_frozen_are_not_muons() -> None:
    lenet = nn.Sequential(
        nn.Conv2d(1, 6, 5), nn.ReLU(), nn.Flatten(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(),
        nn.Linear(8, 4),
    )  # fmt: skip
    assert names(lenet, hidden_matrices(lenet)) == {"3.weight", "5.weight"}
    lenet[3].weight.requires_grad_(False)
    assert names(lenet, hidden_matrices(lenet)) == {"5.weight"}
    assert parts(lenet)["AdamW", 0.1] == {"0.weight", "7.weight"}


@pytest.mark.parametrize("model", [nn.Linear(6, 3), nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5))])
def test_a_model_without_hidden_matrices_is_refused(model: nn.Module) -> None:
    with pytest.raises(
        UsageError, match=r"optimizer muon: model 'small' has no hidden matrix, .* --optimizer adamw"
    ):
        build_optimizer(model, config())


def test_a_torch_without_muon_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(UsageError, match=r"optimizer muon: expected torch 2\.9 or newer, found 2\."):
        build_optimizer(tiny(), config())


def test_adamw_decays_matrices_only() -> None:
    model = nn.Linear(4, 3)
    before = copy.deepcopy(model.state_dict())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    build_optimizer(model, config(optimizer="adamw", weight_decay=0.5)).step(LR)
    assert model.weight.detach().allclose(before["weight"] * (1 - LR * 0.5))
    assert model.bias.detach().equal(before["bias"])


# Saving


def trained(optimizer: LocalOptimizer, model: nn.Module, steps: range) -> None:
    for step in steps:
        text = torch.randint(256, (2, 8), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(text).square().mean().backward()
        optimizer.step(LR)


def test_two_optimizers_go_on_bitwise_and_forget() -> None:
    model = tiny()
    optimizer = build_optimizer(model, config())
    trained(optimizer, model, range(3))
    other = tiny()
    other.load_state_dict(model.state_dict())
    again = build_optimizer(other, config())
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    trained(optimizer, model, range(3, 6))
    trained(again, other, range(3, 6))
    assert same(model.state_dict(), other.state_dict())
    assert same(optimizer.state_dict(), again.state_dict())
    again.forget()
    assert [part["state"] for part in again.state_dict()["parts"]] == [{}, {}]
    with pytest.raises(ValueError, match=r"parameter groups|argument 2 is"):
        build_optimizer(other, config(optimizer="adamw")).load_state_dict(optimizer.state_dict())


# The learning rate, and the length of the gradient


def test_the_rate_rises_linearly_and_then_follows_the_schedule() -> None:
    plain = config(schedule="cosine", steps=10, warmup=0)
    assert [learning_rate(plain, n) for n in range(1, 11)] == [
        LR * 0.5 * (1.0 + math.cos(math.pi * (n - 1) / 10)) for n in range(1, 11)
    ]
    warm = config(schedule="cosine", steps=14, warmup=4)
    rates = [learning_rate(warm, n) for n in range(1, 15)]
    assert rates[:4] == pytest.approx([LR / 4, LR / 2, 3 * LR / 4, LR])
    assert rates[4:] == pytest.approx([learning_rate(plain, n) for n in range(1, 11)])
    constant = config(schedule="constant", steps=6, warmup=3)
    assert [learning_rate(constant, n) for n in range(1, 7)] == pytest.approx([LR / 3, 2 * LR / 3, LR, LR, LR, LR])
    assert learning_rate(config(schedule="cosine", steps=5, warmup=9), 5) == pytest.approx(5 / 9 * LR)


@pytest.mark.parametrize(("clip", "norm"), [(0.0, 5.0), (2.0, 2.0), (7.0, 5.0)])
def test_longer_gradients_are_shortened(clip: float, norm: float) -> None:
    model = nn.Linear(1, 1)
    model.weight.grad, model.bias.grad = torch.tensor([[3.0]]), torch.tensor([-4.0])
    clip_gradient(model, config(clip=clip))
    assert [float(model.weight.grad), float(model.bias.grad)] == pytest.approx([0.6 * norm, -0.8 * norm], rel=1e-5)


# Several optimizers in a loop of one's own


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(3, 3), nn.Linear(3, 1)


def one_of_two(comm: Comm, kind: str) -> list[Tensor]:
    """Train with two optimizers of different rates, told in one of several ways; return the weights."""
    torch.manual_seed(0)
    model = Two()
    first = torch.optim.SGD(model.inner.parameters(), 0.1)
    second = torch.optim.SGD(model.outer.parameters(), 0.01)
    both = torch.optim.SGD([*first.param_groups, *second.param_groups], 0.1)
    told = {"list": [first, second], "tuple": (first, second), "one": both}[kind]
    sync = Synchronizer(model, SlowMo(when=Every(2)), comm)
    source = torch.Generator().manual_seed(comm.rank)
    for _ in range(6):
        inputs = torch.randn(4, 3, generator=source)
        loss = model.outer(model.inner(inputs)).square().mean()
        for optimizer in (first, second):
            optimizer.zero_grad()
        loss.backward()
        for optimizer in (first, second):
            optimizer.step()
        sync.step(loss, told)
    sync.finish()
    return [parameter.detach().clone() for parameter in model.parameters()]


def test_a_list_of_optimizers_is_one_with_all_their_groups() -> None:
    expected = simulate(lambda comm: one_of_two(comm, "one"), 2)
    for kind in ("list", "tuple"):
        assert same(simulate(lambda comm, kind=kind: one_of_two(comm, kind), 2), expected)


def test_a_trigger_takes_the_highest_rate_of_all_optimizers() -> None:
    def rounds(comm: Comm, several: bool) -> list[int]:
        model = Two()
        told = [torch.optim.SGD(m.parameters(), lr) for m, lr in ((model.inner, 1e-3), (model.outer, 0.1))]
        sync = Synchronizer(model, LocalSGD(when=QuadraticRule(2, 0.2)), comm)
        return [n for n in range(20) if sync.step(1.0, told if several else 0.1)]

    assert simulate(lambda comm: rounds(comm, True), 2) == simulate(lambda comm: rounds(comm, False), 2)


@pytest.mark.parametrize("lr", [[], (), [0.1], [torch.optim.SGD([torch.zeros(1)], 0.1), 0.1]])
def test_a_list_of_something_else_is_refused(lr: Any) -> None:
    def run(comm: Comm) -> None:
        Synchronizer(nn.Linear(2, 2), SlowMo(), comm, Options()).step(1.0, lr)

    with pytest.raises(UsageError, match="a list of all optimizers, or the optimizer itself, found"):
        simulate(run, 1)


# Against plain PyTorch


def by_hand(outer: bool) -> dict[str, Tensor]:
    """Return the weights of the text run of one worker, trained with torch alone.

    With `outer`, each step a -> x is taken again as DiLoCo's rounds of one step do with s = 1, w = 0: x = a - (a -
    x), which is x but for its rounding. Newton-Schulz in bfloat16 makes 1e-4 out of that in a few steps.
    """
    workload = WORKLOADS["text"]()
    wish = resolved(workload, {"workers": 1})
    feed = Feed(wish, workload, 0, torch.device("cpu"))
    seed_torch(mix(wish.seed, "model"), torch.device("cpu"))
    model = tiny()
    norms = [p for p in model.parameters() if p.ndim == 1]
    tables = [model.embedding.weight, model.positions.weight]
    block = model.blocks[0]
    hidden = [m.weight for m in (block.attend, block.out, block.up, block.down)]
    muon = torch.optim.Muon(hidden, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW([{"params": tables, "weight_decay": 0.1}, {"params": norms, "weight_decay": 0.0}])
    for step in range(1, 15):
        anchor = [p.detach().clone() for p in model.parameters()]
        lr = 2e-3 * step / 3 if step <= 3 else 2e-3 * 0.5 * (1 + math.cos(math.pi * ((step - 4) / 11)))
        inputs, targets = feed.batch(step)
        loss = nn.functional.cross_entropy(model(inputs).view(-1, 256), targets.view(-1))
        model.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in (muon, adamw):
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()
        if outer:
            for parameter, before in zip(model.parameters(), anchor, strict=True):
                parameter.data.copy_(before - (before - parameter.data))
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(
    ("strategy", "settings"),
    [("independent", {}), ("synchronous", {}), ("local-sgd", {}), ("diloco", {"lr": "1", "momentum": "0"})],
)
def test_one_worker_is_plain_training_with_two_optimizers(
    strategy: str, settings: dict[str, str], tmp_path: Path
) -> None:
    train({"strategy": strategy, "settings": settings, "every": 1, "workers": 1}, tmp_path / "run", "text")
    saved = load_file(tmp_path / "run" / "model.safetensors")
    assert same(saved, by_hand(outer=strategy == "diloco"))
