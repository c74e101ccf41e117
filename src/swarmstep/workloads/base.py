"""What a workload is: data, models, a loss, and defaults that train well.

A workload of one's own is one short file, run as ``swarmstep train my.py:workload``::

    import torch
    from torch import nn
    from swarmstep.workloads import Defaults, Examples, Workload

    x = torch.randn(2000, 8, generator=torch.Generator().manual_seed(0))
    y = (x.sum(1) > 0).long()
    workload = Workload(
        name="halves",
        train=Examples(x[:1600], y[:1600]),
        test=Examples(x[1600:], y[1600:]),
        models={"linear": lambda: nn.Linear(8, 2)},
        defaults=Defaults(optimizer="sgd", lr=0.1, batch=32, every=16, steps=400),
        classes=2,
    )
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy

from swarmstep.errors import UsageError
from swarmstep.workloads.defaults import Defaults

Loss = Callable[[Tensor, Tensor], Tensor]  # (outputs, targets) -> a mean over the batch


@dataclass(frozen=True, eq=False)
class Examples:
    """Examples as they are stored: `inputs` [N, ...] of any dtype, `targets` [N, ...] (int64 for classes).

    Raises UsageError where the two lengths differ.
    """

    inputs: Tensor
    targets: Tensor

    def __post_init__(self) -> None:
        if self.inputs.ndim == 0 or self.targets.ndim == 0 or len(self.inputs) != len(self.targets):
            shapes = f"{tuple(self.inputs.shape)} and {tuple(self.targets.shape)}"
            raise UsageError(f"inputs and targets must have the same first dimension, found shapes {shapes}")

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, indices: Tensor) -> Examples:
        """Return a copy of the examples at `indices` (int64 [n], each in [0, N)), in that order."""
        return Examples(self.inputs[indices], self.targets[indices])


def as_float(inputs: Tensor) -> Tensor:
    """Return `inputs` as float32, otherwise as they are: the default `prepare`."""
    return inputs.float()


def right_answers(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return how many of the B rows of `outputs` [B, C] have their largest value at `targets` [B]."""
    return (outputs.argmax(1) == targets).sum()


@dataclass(frozen=True, eq=False)
class Workload:
    """A task to train on: everything a run needs besides the strategy.

    `train` and `test` hold the examples as stored; `prepare` makes a float batch of stored inputs; `augment`
    changes a prepared batch, in training only, its randomness from the given generator alone. `models` maps a
    name to a function that builds the module (weights from torch's global generator, which the caller seeds);
    the first is the default. `loss(outputs, targets)` is a mean over the batch; `correct(outputs, targets)`
    the number of right answers in it (a fraction counts for an example with several targets), None where
    accuracy has no meaning. `classes` is how many values a target, or each of an example's targets, can have;
    None where the targets are no classes. Only examples with one class each can be sharded by class.

    `objectives` are what a model can be trained for, where there is a choice: name -> function of the classes'
    shares among the examples as they are drawn, float64 [C], that returns the loss. It may be a module with
    parameters of its own, which are trained and averaged with the model's. The first is the default, and the run's
    losses are its; `loss` is not used then.

    `metrics` has what is measured of all outputs on a whole set: name -> function of the outputs [N, ...] and the
    targets [N, ...], a number from 0 to 1, the higher the better; the summary then has test_auc and
    validation_auc, say. The first is what methods are judged by, in place of the accuracy.

    `measures` has what else is shown of a mean loss: name -> function of it, "bits_per_byte" say; the summary
    then has test_bits_per_byte and validation_bits_per_byte. `averages` has what else is measured in an
    evaluation: name -> function of a batch's outputs, which returns a mean over the batch; shown likewise.
    `corpus` is the SHA-256 (hex) of data that may differ from machine to machine under the same name, else None:
    runs on different ones are not put together.

    Raises UsageError for no model, no examples, targets outside [0, classes), objectives without classes, or a
    measure or metric with a taken name.
    """

    name: str
    train: Examples
    test: Examples
    models: Mapping[str, Callable[[], nn.Module]]
    defaults: Defaults
    classes: int | None
    prepare: Callable[[Tensor], Tensor] = as_float
    augment: Callable[[Tensor, Generator], Tensor] | None = None
    loss: Loss = cross_entropy
    correct: Callable[[Tensor, Tensor], Tensor] | None = right_answers
    objectives: Mapping[str, Callable[[Tensor], Loss]] = field(default_factory=dict[str, Callable[[Tensor], Loss]])
    metrics: Mapping[str, Callable[[Tensor, Tensor], float]] = field(
        default_factory=dict[str, Callable[[Tensor, Tensor], float]]
    )
    measures: Mapping[str, Callable[[float], float]] = field(default_factory=dict[str, Callable[[float], float]])
    averages: Mapping[str, Callable[[Tensor], Tensor]] = field(
        default_factory=dict[str, Callable[[Tensor], Tensor]]
    )
    corpus: str | None = None

    def __post_init__(self) -> None:
        if not self.models:
            raise UsageError(f"workload {self.name!r} has no model; give models={{name: function}}")
        names = ["loss", "accuracy", *self.metrics, *self.measures, *self.averages]
        if taken := {name for name in names if names.count(name) > 1}:
            raise UsageError(
                f"workload {self.name!r}: measure {min(taken)!r}: the name is taken; give another one"
            )
        if self.objectives and self.classes is None:
            raise UsageError(f"workload {self.name!r}: objectives need targets that are classes; give `classes`")
        for part, examples in (("train", self.train), ("test", self.test)):
            if not len(examples):
                raise UsageError(f"workload {self.name!r} has no {part} examples")
            if self.classes is not None:
                self._check_classes(part, examples.targets, self.classes)

    def _check_classes(self, part: str, targets: Tensor, classes: int) -> None:
        if targets.dtype != torch.int64:
            raise UsageError(f"workload {self.name!r}: {part} targets must be int64, found {targets.dtype}")
        low, high = int(targets.min()), int(targets.max())
        if low < 0 or high >= classes:
            span = f"{low} to {high}"
            raise UsageError(f"workload {self.name!r}: {part} targets must be in 0..{classes - 1}, found {span}")
