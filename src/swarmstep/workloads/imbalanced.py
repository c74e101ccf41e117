"""Two classes of which one is rare, judged by the AUC: other data sets made binary, or a table of one's own.

``imbalanced:digits:0.02`` is digits with 2 % positives; ``imbalanced:fraud`` with ``--data FILE.csv`` is a table
whose column `fraud` says what is positive.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from swarmstep.errors import DataError, UsageError
from swarmstep.objectives import AUCMinMax, auc
from swarmstep.seeding import generator
from swarmstep.workloads import cifar10, digits, mnist
from swarmstep.workloads.base import Examples, Loss, Workload, as_float
from swarmstep.workloads.defaults import BUILT_IN
from swarmstep.workloads.table import read_table

RATE = 0.1  # of positives, unless another is asked for
SOURCES: Mapping[str, Callable[[Path | None], Workload]] = {
    "digits": lambda _: digits.load(),
    "mnist": mnist.load,
    "cifar10": cifar10.load,
}


def cross_entropy(scores: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy of scores [B] or [B, 1], which are logits, for targets [B] of 0 and 1."""
    return binary_cross_entropy_with_logits(scores.reshape(targets.shape), targets.to(scores.dtype))


def _auc(shares: Tensor) -> Loss:
    return AUCMinMax(float(shares[1]))


def _cross_entropy(shares: Tensor) -> Loss:
    return cross_entropy


OBJECTIVES: Mapping[str, Callable[[Tensor], Loss]] = {"auc": _auc, "cross-entropy": _cross_entropy}


def binary(examples: Examples, classes: int) -> Examples:
    """Return the examples with target 1 for the upper half of the classes, 0 for the lower half."""
    return Examples(examples.inputs, (examples.targets >= classes // 2).long())


def thinned(examples: Examples, rate: float) -> Examples:
    """Return all negative examples, and as many positive ones, drawn at random, as make up this share of all.

    Raises UsageError where that is less than one, or more than there are.
    """
    positive, negative = ((examples.targets == y).nonzero().flatten() for y in (1, 0))
    wanted = round(rate / (1 - rate) * len(negative)) if 0 < rate < 1 else 0
    if not 1 <= wanted <= len(positive):
        most = len(positive) / (len(positive) + len(negative))
        raise UsageError(
            f"imbalanced: expected a rate of positives above 0 and at most {most:.3f}, of which there is at least "
            f"one, found {rate:g}"
        )
    drawn = positive[torch.randperm(len(positive), generator=generator("imbalanced", wanted))[:wanted]]
    return examples.take(torch.cat([negative, drawn]).sort().values)


def _with_one_output(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    def built() -> nn.Module:
        model = build()
        assert isinstance(model, nn.Sequential)
        last = model[-1]
        assert isinstance(last, nn.Linear)
        model[-1] = nn.Linear(last.in_features, 1)
        return model

    return built


def _linear(features: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(features, 1))


def _mlp(features: int) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(features, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1)
    )


def load(data: Path | None = None, variant: str = "") -> Workload:
    """Return the workload.

    Args:
        data: a table (CSV), or the folder of the data files, or None.
        variant: SOURCE or SOURCE:RATE, one of SOURCES and the share of positives in the training part, by default
            digits:0.1; of a table the name of the column with the labels, by default the last one.

    The test part keeps all its examples: an AUC does not depend on the rate, and is the more exact.

    Raises:
        UsageError: an unknown source, or a rate out of its range.
        DataError: data files are missing or damaged, or the table is not as `read_table` expects it.
    """
    if data is not None and not data.is_dir() and (data.is_file() or data.suffix):
        return _of_table(data, variant)
    source, _, text = variant.partition(":")
    source = source or "digits"
    if source not in SOURCES:
        valid = f"one of {', '.join(SOURCES)}, or a table with --data FILE.csv"
        raise UsageError(f"imbalanced: unknown source {source!r}; expected {valid}")
    try:
        rate = float(text) if text else RATE
    except ValueError:
        raise UsageError(f"imbalanced: expected a rate of positives, 0.02 say, found {text!r}") from None
    whole = SOURCES[source](data)
    classes = whole.classes or 0
    models = {name: _with_one_output(build) for name, build in whole.models.items()}
    if source == "digits":
        models["linear"] = lambda: _linear(64)
    return _workload(thinned(binary(whole.train, classes), rate), binary(whole.test, classes), models, whole)


def _of_table(file: Path, label: str) -> Workload:
    table = read_table(file, label)
    features = table.train.inputs.shape[1]
    return _workload(table.train, table.test, {"mlp": lambda: _mlp(features), "linear": lambda: _linear(features)})


def _workload(
    train: Examples, test: Examples, models: Mapping[str, Callable[[], nn.Module]], source: Workload | None = None
) -> Workload:
    for name, part in (("training", train), ("test", test)):
        if len(part.targets.unique()) < 2:
            raise DataError(f"imbalanced: the {name} part has examples of one class only; expected both")
    return Workload(
        name="imbalanced",
        train=train,
        test=test,
        models=models,
        defaults=BUILT_IN["imbalanced"].defaults,
        classes=2,
        loss=cross_entropy,
        correct=None,
        objectives=OBJECTIVES,
        metrics={"auc": auc},
        prepare=source.prepare if source else as_float,
        augment=source.augment if source else None,
    )
