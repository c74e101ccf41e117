"""Kinds of models that train in plain PyTorch: each small, with a loss on random inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.utils.checkpoint import checkpoint

BATCH = 4


class Kind(NamedTuple):
    """How to make a model and its inputs, and what makes numbers of its outputs."""

    make: Callable[[], nn.Module]
    inputs: Callable[[], Tensor]
    output: Callable[[Any], Tensor] = lambda output: output


def vectors(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(BATCH, *(shape or (6,)))


def tokens() -> Tensor:
    return torch.randint(0, 10, (BATCH, 5))


def first(output: Any) -> Tensor:
    return output[0]


def mlp(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), *layers, nn.Linear(8, 3))


def images(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), *layers, nn.Flatten(), nn.LazyLinear(2))


def run_once(model: nn.Module, inputs: Callable[[], Tensor]) -> nn.Module:
    with torch.no_grad():
        model(inputs())
    return model


class TiedLanguageModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 6)
        self.layer = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.1, batch_first=True)
        self.head = nn.Linear(6, 10, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.embed(x)))


class LoRA(nn.Module):
    """A frozen layer and a trained update of low rank."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(6, 6).requires_grad_(False)
        self.down, self.up = nn.Linear(6, 2, bias=False), nn.Linear(2, 6, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


class Spiking(nn.Module):
    """A hidden state that is registered as non-persistent and takes the batch's shape."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.out = nn.Linear(6, 8), nn.Linear(8, 3)
        self.register_buffer("membrane", torch.zeros(0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        before = self.membrane if len(self.membrane) == len(x) else x.new_zeros(len(x), 8)
        now = 0.9 * before + self.layer(x)
        self.membrane = now.detach()
        return self.out(torch.sigmoid(4 * now))


class Masked(nn.Module):
    """A persistent mask of infinities, and a scale that is no parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)
        self.register_buffer("mask", torch.triu(torch.full((4, 4), -torch.inf), 1))
        self.register_buffer("seen", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        return (x @ x.T / 6 + self.mask).softmax(-1) @ self.layer(x)


class ExtraState(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.calls = nn.Linear(6, 3), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.layer(x)

    def get_extra_state(self) -> dict[str, int]:
        return {"calls": self.calls}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.calls = state["calls"]


class OwnStateDict(nn.Linear):
    """`state_dict` with a signature of its own, as some frameworks have."""

    def state_dict(self, *, full: bool = True) -> dict[str, Tensor]:  # type: ignore[override]
        return {f"own.{name}": value for name, value in super().state_dict().items() if full or name == "weight"}


class Unused(nn.Module):
    """A layer that the forward pass does not use."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(6, 3), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


class MixedDtypes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.low, self.high = nn.Linear(6, 8).bfloat16(), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.high(self.low(x.bfloat16()).float())


class Scalars(nn.Module):
    """Parameters without dimensions, and an empty one."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.zeros(()))
        self.empty = nn.Parameter(torch.zeros(0, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x + self.shift + self.empty.sum()


class Symmetric(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.triu() + x.triu(1).T


class Straight(nn.Module):
    """A fake-quantized layer with a straight-through gradient and a moving range."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)
        self.register_buffer("low", torch.tensor(torch.inf))
        self.register_buffer("high", torch.tensor(-torch.inf))

    def forward(self, x: Tensor) -> Tensor:
        self.low, self.high = torch.minimum(self.low, x.min()), torch.maximum(self.high, x.max())
        scale = (self.high - self.low) / 255
        rounded = (x / scale).round() * scale
        return self.layer(x + (rounded - x).detach())


def parametrized() -> nn.Module:
    layer = nn.Linear(6, 6)
    parametrize.register_parametrization(layer, "weight", Symmetric())
    return layer


def old_weight_norm() -> nn.Module:
    return nn.Sequential(nn.utils.weight_norm(nn.Linear(6, 3)))  # pyright: ignore[reportDeprecated]


def quantization_aware() -> nn.Module:
    model = mlp(nn.ReLU())
    observer = torch.ao.quantization.FakeQuantize.with_args(
        observer=torch.ao.quantization.MovingAverageMinMaxObserver, quant_min=0, quant_max=255, dtype=torch.quint8
    )
    return nn.Sequential(observer(), model)


def recurrent(kind: type[nn.Module]) -> Kind:
    return Kind(lambda: kind(6, 5, batch_first=True), vectors(3, 6), first)


def attention() -> nn.Module:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(6, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x, x, x)[0]

    return Attention()


IMAGES = vectors(3, 6, 6)
ZOO: dict[str, Kind] = {
    "linear": Kind(lambda: nn.Linear(6, 3), vectors()),
    "mlp": Kind(lambda: mlp(nn.ReLU()), vectors()),
    "dropout": Kind(lambda: mlp(nn.Dropout(0.5)), vectors()),
    "batch-norm": Kind(lambda: mlp(nn.BatchNorm1d(8)), vectors()),
    "batch-norm-cumulative": Kind(lambda: mlp(nn.BatchNorm1d(8, momentum=None)), vectors()),
    "batch-norm-no-statistics": Kind(lambda: mlp(nn.BatchNorm1d(8, track_running_stats=False)), vectors()),
    "layer-norm": Kind(lambda: mlp(nn.LayerNorm(8)), vectors()),
    "rms-norm": Kind(lambda: mlp(nn.RMSNorm(8)), vectors()),
    "group-norm": Kind(lambda: mlp(nn.GroupNorm(2, 8)), vectors()),
    "instance-norm": Kind(
        lambda: run_once(images(nn.InstanceNorm2d(4, affine=True, track_running_stats=True)), IMAGES), IMAGES
    ),
    "spectral-norm": Kind(lambda: parametrizations.spectral_norm(nn.Linear(6, 3)), vectors()),
    "old-spectral-norm": Kind(lambda: nn.utils.spectral_norm(nn.Linear(6, 3)), vectors()),
    "weight-norm": Kind(lambda: parametrizations.weight_norm(nn.Linear(6, 3)), vectors()),
    "old-weight-norm": Kind(old_weight_norm, vectors()),
    "orthogonal": Kind(lambda: parametrizations.orthogonal(nn.Linear(6, 6)), vectors()),
    "parametrized": Kind(parametrized, vectors()),
    "convolution": Kind(lambda: run_once(images(nn.ReLU()), IMAGES), IMAGES),
    "channels-last": Kind(
        lambda: run_once(images(nn.BatchNorm2d(4)), IMAGES).to(memory_format=torch.channels_last), IMAGES
    ),
    "transposed-convolution": Kind(lambda: nn.ConvTranspose2d(3, 2, 3), IMAGES),
    "depthwise": Kind(lambda: nn.Conv2d(3, 6, 3, groups=3), IMAGES),
    "lazy-run-once": Kind(lambda: run_once(mlp(nn.LazyLinear(8), nn.LazyBatchNorm1d()), vectors()), vectors()),
    "bilinear-prelu": Kind(lambda: mlp(nn.PReLU(8)), vectors()),
    "embedding": Kind(lambda: nn.Embedding(10, 4, max_norm=1.0), tokens),
    "embedding-bag": Kind(lambda: nn.EmbeddingBag(10, 4), tokens),
    "sparse-embedding": Kind(lambda: nn.Embedding(10, 4, sparse=True), tokens),
    "rnn": recurrent(nn.RNN),
    "gru": recurrent(nn.GRU),
    "lstm": recurrent(nn.LSTM),
    "attention": Kind(attention, vectors(3, 6)),
    "transformer": Kind(lambda: nn.TransformerEncoderLayer(6, 2, 8, batch_first=True), vectors(3, 6)),
    "tied": Kind(TiedLanguageModel, tokens),
    "lora": Kind(LoRA, vectors()),
    "spiking": Kind(Spiking, vectors()),
    "masked": Kind(Masked, vectors()),
    "extra-state": Kind(ExtraState, vectors()),
    "own-state-dict": Kind(lambda: OwnStateDict(6, 3), vectors()),
    "unused": Kind(Unused, vectors()),
    "mixed-dtypes": Kind(MixedDtypes, vectors()),
    "float64": Kind(lambda: mlp(nn.BatchNorm1d(8)).double(), lambda: torch.randn(BATCH, 6).double()),
    "bfloat16": Kind(lambda: mlp(nn.ReLU()).bfloat16(), lambda: torch.randn(BATCH, 6).bfloat16()),
    "scalars": Kind(Scalars, vectors()),
    "straight-through": Kind(Straight, vectors()),
    "quantization-aware": Kind(quantization_aware, vectors()),
    "frozen-part": Kind(lambda: nn.Sequential(nn.Linear(6, 6).requires_grad_(False), nn.Linear(6, 3)), vectors()),
    "checkpointed": Kind(lambda: Checkpointed(), vectors()),
}


class Checkpointed(nn.Module):
    """Activations that are computed again in the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp(nn.Dropout(0.2))

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.body, x, use_reentrant=False)


def loss_of(kind: Kind, model: nn.Module, inputs: Tensor) -> Tensor:
    """Return the mean square of what the model makes of the inputs, away from a constant target."""
    output = kind.output(model(inputs))
    output = output if output.dtype == torch.float64 else output.float()
    return (output - 1.0).square().mean()
