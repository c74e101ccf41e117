"""What trains in plain PyTorch trains here: one worker that synchronizes at every step changes no bit."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from helpers import same
from model_zoo import ZOO, Kind, loss_of
from swarmstep import Comm, Every, LocalSGD, Options, Synchronizer, simulate
from whole_runs import fast_if

STEPS = 30
EVERY_STEP = LocalSGD(when=Every(1))

pytestmark = [
    pytest.mark.filterwarnings("ignore:Lazy modules"),
    pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight"),
    pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated"),
    pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

MakeSync = Callable[[nn.Module], Synchronizer]


class Recipe(NamedTuple):
    """An optimizer by its parameters, and how a step is taken with it: from what computes a loss, to that loss."""

    optimizer: Callable[[Iterable[Tensor]], torch.optim.Optimizer]
    clip: bool = False
    accumulate: int = 1
    autocast: bool = False
    scale: bool = False


RECIPES: dict[str, Recipe] = {
    "sgd": Recipe(lambda p: torch.optim.SGD(p, 0.05)),
    "momentum": Recipe(lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, nesterov=True, foreach=False)),
    "adamw": Recipe(lambda p: torch.optim.AdamW(p, 0.01, foreach=False)),
    "foreach": Recipe(lambda p: torch.optim.AdamW(p, 0.01, foreach=True)),
    "fused": Recipe(lambda p: torch.optim.AdamW(p, 0.01, fused=True)),
    "lbfgs": Recipe(lambda p: torch.optim.LBFGS(p, 0.1, max_iter=3)),
    "accumulate": Recipe(lambda p: torch.optim.SGD(p, 0.05), accumulate=3),
    "clip": Recipe(lambda p: torch.optim.SGD(p, 0.05), clip=True),
    "autocast": Recipe(lambda p: torch.optim.SGD(p, 0.05), autocast=True),
    "scaler": Recipe(lambda p: torch.optim.SGD(p, 0.05), scale=True, clip=True),
}
# What torch itself does not do with a kind of model.
NOT_IN_TORCH = {
    ("sparse-embedding", recipe) for recipe in ("momentum", "adamw", "foreach", "fused", "clip", "scaler", "lbfgs")
}
NOT_IN_TORCH |= {("mixed-dtypes", "fused"), ("mixed-dtypes", "lbfgs"), ("channels-last", "lbfgs")}
NOT_IN_TORCH |= {("float64", "autocast")}
# Its weights grow a thousandfold between two rounds, which is an error here.
NOT_IN_TORCH |= {("embedding", "lbfgs")}


class Training:
    """A model, its optimizer and a Synchronizer, from one seed."""

    def __init__(self, kind: Kind, recipe: Recipe, sync: MakeSync | None) -> None:
        torch.manual_seed(0)
        self.kind, self.recipe, self.model = kind, recipe, kind.make()
        self.sync = sync(self.model) if sync else None
        self.optimizer = recipe.optimizer([p for p in self.model.parameters() if p.requires_grad])
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, enabled=recipe.scale)

    def gradients(self, batches: list[Tensor]) -> Tensor:
        """Compute the gradients of the mean loss, and return that."""
        self.optimizer.zero_grad()
        total = torch.zeros(())
        for inputs in batches:
            with torch.autocast("cpu", torch.bfloat16, enabled=self.recipe.autocast):
                loss = loss_of(self.kind, self.model, inputs) / len(batches)
            self.scaler.scale(loss).backward()
            total = total + loss.detach()
        if self.recipe.scale:
            self.scaler.unscale_(self.optimizer)
        if self.recipe.clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), 0.5)
        return total

    def step(self, batches: list[Tensor]) -> None:
        if isinstance(self.optimizer, torch.optim.LBFGS):
            loss = self.optimizer.step(lambda: self.gradients(batches))
        else:
            loss = self.gradients(batches)
            self.scaler.step(self.optimizer)
            self.scaler.update()
        if self.sync:
            self.sync.step(loss)


def train(kind: Kind, recipe: Recipe, sync: MakeSync | None) -> list[Tensor]:
    """Return the tensors of a model after its training."""
    training = Training(kind, recipe, sync)
    for step in range(STEPS):
        torch.default_generator.manual_seed(1 + step)
        training.step([kind.inputs() for _ in range(recipe.accumulate)])
    if training.sync:
        training.sync.finish()
    return [tensor.detach().clone() for tensor in (*training.model.parameters(), *training.model.buffers())]


# Layers without anything that others do not have: slow, with SGD too.
PLAIN_KINDS = {
    "linear",
    "mlp",
    "layer-norm",
    "rms-norm",
    "group-norm",
    "convolution",
    "depthwise",
    "rnn",
    "gru",
    "lora",
}
PLAIN_KINDS |= {
    "transposed-convolution",
    "bilinear-prelu",
    "attention",
    "transformer",
    "embedding-bag",
    "frozen-part",
}
CASES = [
    fast_if((recipe == "sgd" and kind not in PLAIN_KINDS) or kind == "batch-norm", kind, recipe)
    for kind in ZOO
    for recipe in RECIPES
    if (kind, recipe) not in NOT_IN_TORCH
]


@pytest.mark.parametrize(("kind", "recipe"), CASES)
def test_one_worker_trains_as_in_plain_pytorch_bitwise(kind: str, recipe: str) -> None:
    given = ZOO[kind], RECIPES[recipe]
    expected = train(*given, None)
    assert all(tensor.isfinite().all() for tensor in expected) or kind == "masked"
    for views in (False, True):

        def alone(comm: Comm, views: bool = views) -> list[Tensor]:
            return train(*given, lambda model: Synchronizer(model, EVERY_STEP, comm, Options(views=views)))

        assert same(simulate(alone, 1)[0], expected)


# Layers whose statistics or random numbers come from each worker's own part of the batch.
BY_BATCH = {kind for kind in ZOO if "norm" in kind and kind not in ("layer-norm", "rms-norm", "group-norm")}
BY_BATCH |= {"dropout", "tied", "transformer", "checkpointed", "channels-last", "lazy-run-once", "float64"}
BY_BATCH |= {"spiking", "embedding", "straight-through", "quantization-aware"}
ROUGH = {"bfloat16": 0.02, "mixed-dtypes": 0.02}
WORKERS = 2


def halves(comm: Comm, kind: Kind, whole: bool) -> list[Tensor]:
    """Train by SGD on this worker's half of each batch; or on all of it, without the other."""
    recipe = RECIPES["sgd"]
    sync = None if whole else lambda model: Synchronizer(model, EVERY_STEP, comm)
    training = Training(kind, recipe, sync)
    for step in range(STEPS):
        torch.default_generator.manual_seed(1 + step)
        batches = [kind.inputs() for _ in range(WORKERS)]
        training.step(batches if whole else [batches[comm.rank]])
    if training.sync:
        training.sync.finish()
    return [parameter.detach().clone() for parameter in training.model.parameters()]


@pytest.mark.parametrize(
    "kind", [fast_if(n % 2 == 0, kind) for n, kind in enumerate(k for k in ZOO if k not in BY_BATCH)]
)
def test_two_workers_that_average_at_every_step_average_gradients(kind: str) -> None:
    """Plain SGD: the mean of the weights after a step is what a step by the mean gradient makes."""
    found = simulate(lambda comm: halves(comm, ZOO[kind], whole=False), WORKERS)
    expected = simulate(lambda comm: halves(comm, ZOO[kind], whole=True), 1)[0]
    limit = ROUGH.get(kind, 1e-5)
    for one, other, mean in zip(*found, expected, strict=True):
        assert torch.equal(one, other)
        torch.testing.assert_close(one, mean, rtol=limit, atol=limit)


def test_a_moving_average_of_the_weights_is_that_of_plain_pytorch() -> None:
    def run(sync: MakeSync | None) -> list[Tensor]:
        training = Training(ZOO["batch-norm"], RECIPES["sgd"], sync)
        average = AveragedModel(training.model)
        for step in range(STEPS):
            torch.default_generator.manual_seed(1 + step)
            training.step([training.kind.inputs()])
            average.update_parameters(training.model)
        return [tensor.detach().clone() for tensor in average.state_dict().values()]

    expected = run(None)
    for views in (False, True):
        made = Options(views=views)
        found = simulate(lambda comm, o=made: run(lambda model: Synchronizer(model, EVERY_STEP, comm, o)), 1)[0]
        assert same(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("views", [False, True])
@pytest.mark.parametrize("outer", [False, True])
def test_compiled_models_train_as_compiled_models_do(views: bool, outer: bool) -> None:
    """The Synchronizer gets the model, or what torch.compile returned."""

    def run(sync: MakeSync | None) -> list[Tensor]:
        torch.manual_seed(0)
        model = ZOO["batch-norm"].make()
        compiled: Any = torch.compile(model, backend="aot_eager")
        synchronizer = sync(compiled if outer else model) if sync else None
        optimizer = torch.optim.SGD(model.parameters(), 0.05)
        for step in range(STEPS):
            torch.default_generator.manual_seed(1 + step)
            optimizer.zero_grad()
            loss = loss_of(ZOO["batch-norm"], compiled, ZOO["batch-norm"].inputs())
            loss.backward()
            optimizer.step()
            if synchronizer:
                synchronizer.step(loss)
        if synchronizer:
            synchronizer.finish()
        return [tensor.detach().clone() for tensor in model.state_dict().values()]

    expected, made = run(None), Options(views=views)
    assert same(
        simulate(lambda comm: run(lambda model: Synchronizer(model, EVERY_STEP, comm, made)), 1)[0], expected
    )
