"""Who holds which examples: what is held out of training, and each worker's shard of the rest."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from swarmstep import spec_help
from swarmstep.errors import UsageError
from swarmstep.seeding import generator, mix


class HeldOut(NamedTuple):
    """Indices (int64) into the training set, pairwise disjoint, together all of it."""

    probe: Tensor
    validation: Tensor
    train: Tensor


@dataclass(frozen=True, eq=False)
class Shard:
    """One worker's examples, n of them.

    `indices` int64 [n] into what was sharded, and `targets` [n, ...], the targets to train on (bad labels differ
    from the stored ones). An epoch goes through runs of `chunks` examples in that order, shuffled only within
    each.
    """

    indices: Tensor
    targets: Tensor
    chunks: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.indices)


def hold_out(count: int, seed: int, probe: int = 512, validation: int = 2000) -> HeldOut:
    """Split `count` training examples, by `seed` alone, into probe, validation and what is trained on.

    The probe is at most `probe` examples and 5 % of all, validation at most `validation` and 10 %; neither is
    empty. Raises UsageError for fewer than 3 examples or sizes below 1.
    """
    if count < 3 or probe < 1 or validation < 1:
        found = f"{count} examples, probe {probe}, validation {validation}"
        raise UsageError(f"holding out needs at least 3 examples and sizes of at least 1, found {found}")
    first = max(1, min(probe, count // 20))
    second = first + max(1, min(validation, count // 10))
    order = torch.randperm(count, generator=generator(seed, "hold-out"))
    return HeldOut(order[:first], order[first:second], order[second:])


def shard(
    targets: Tensor, spec: str, workers: int, seed: int, classes: int | None, places: Tensor | None = None
) -> list[Shard]:
    """Deal the examples with `targets` [N, ...] to `workers`, by `seed` alone; one Shard a rank, none empty.

    `places` int64 [N] says where each example is stored, by default in the order of `targets`.

    - ``iid``: disjoint, together everything, sizes differing by at most 1.
    - ``contiguous``: as iid, but each worker has one stretch of what is stored, in the order of ranks: as unlike
      as its content is.
    - ``dealt``: as iid, but anew in every pass; no shards at all, see `Ledger`, and not for this function.
    - ``classes:K``: worker i holds the classes (K*i + j) mod C for j < K, each class split evenly among its
      holders. A class that nobody holds is not trained on, and a warning says so.
    - ``dirichlet:ALPHA``: of each class the workers get shares drawn from a symmetric Dirichlet distribution
      (ALPHA > 0; the smaller, the less alike the shards). A worker left with nothing gets one example of the
      worker that then has most. Disjoint, together everything.
    - ``seldp``: everybody has everything, in the same W random chunks, worker i starting with chunk i and
      going round, shuffled within chunks. After SelSync's SelDP (arXiv 2307.07950), from memory and not
      verified.
    - ``bad-labels:K``: the targets of the last K ranks are uniform random classes, drawn once; alone it means
      ``iid+bad-labels:K``.

    Raises UsageError for any other spec, a number out of range, a worker without an example, a spec by class
    where an example has several targets, or one that needs classes where `classes` is None.
    """
    base, number, bad = parse(spec, workers, classes, targets.ndim == 1)
    if base == "dealt":
        raise UsageError("shards 'dealt' are none: the workers draw from one Ledger")
    if workers < 1 or workers > len(targets):
        raise UsageError(f"workers must be 1 to {len(targets)}, the number of examples, found {workers}")
    if base == "contiguous":
        shards = _contiguous(targets, places, workers)
    else:
        shards = _BASES[base](targets, number, workers, seed, classes or 0)
    for rank, part in enumerate(shards):
        if not len(part):
            raise UsageError(f"shards {spec!r}: rank {rank} of {workers} gets no example; use fewer workers")
    for rank in range(workers - bad, workers):
        part, source = shards[rank], generator(seed, "bad-labels", rank)
        shards[rank] = replace(part, targets=torch.randint(classes or 0, part.targets.shape, generator=source))
    return shards


def parse(spec: str, workers: int, classes: int | None, single: bool = True) -> tuple[str, float, int]:
    """Return the base of `spec`, its number (0 if it takes none), and how many ranks have bad labels.

    `single` says whether an example has one target. Raises UsageError where `spec` is none, or does not go with
    so many workers, classes or targets.
    """
    first, *rest = [_parse_part(part, spec) for part in spec.split("+")]
    if first[0] == "bad-labels":
        first, rest = ("iid", 0.0), [first, *rest]
    if len(rest) > 1 or any(name != "bad-labels" or first[0] == "dealt" for name, _ in rest):
        raise UsageError(f"unknown shards {spec!r}; expected {spec_help.SHARDS}")
    (base, number), bad = first, int(rest[0][1]) if rest else 0
    if classes is None and (rest or base in ("classes", "dirichlet")):
        raise UsageError(f"shards {spec!r} need a workload with classes; expected iid, contiguous or seldp")
    if not single and base in ("classes", "dirichlet"):
        raise UsageError(
            f"shards {spec!r} need examples of one class each, and here each has several; expected iid, "
            "contiguous, seldp or bad-labels:K"
        )
    if base == "classes" and not 1 <= number <= (classes or 0):
        raise UsageError(f"shards {spec!r}: classes of a worker must be 1 to {classes}, found {int(number)}")
    if base == "dirichlet" and not 1e-3 <= number <= 1e6:
        raise UsageError(f"shards {spec!r}: ALPHA must be 0.001 to 1e6, found {number:g}")
    if rest and not 1 <= bad <= workers:
        raise UsageError(f"shards {spec!r}: bad-labels must be 1 to {workers}, the number of workers, found {bad}")
    return base, number, bad


def _parse_part(part: str, spec: str) -> tuple[str, float]:
    name, colon, text = part.partition(":")
    kinds: dict[str, Callable[[str], float] | None] = {
        "iid": None, "contiguous": None, "dealt": None, "seldp": None,
        "classes": int, "bad-labels": int, "dirichlet": float,
    }  # fmt: skip
    try:
        kind = kinds[name]
        if bool(colon) == (kind is None):
            raise ValueError
        number = kind(text) if kind else 0.0
        if math.isnan(number):
            raise ValueError
    except (KeyError, ValueError):
        raise UsageError(f"unknown shards {spec!r}; expected {spec_help.SHARDS}") from None
    return name, number


def _whole(indices: Tensor, targets: Tensor) -> Shard:
    return Shard(indices, targets[indices], (len(indices),))


def _iid(targets: Tensor, _number: float, workers: int, seed: int, _classes: int) -> list[Shard]:
    order = torch.randperm(len(targets), generator=generator(seed, "iid"))
    return [_whole(part, targets) for part in order.tensor_split(workers)]


def _contiguous(targets: Tensor, places: Tensor | None, workers: int) -> list[Shard]:
    order = torch.arange(len(targets)) if places is None else places.argsort()
    return [_whole(part, targets) for part in order.tensor_split(workers)]


def _seldp(targets: Tensor, _number: float, workers: int, seed: int, _classes: int) -> list[Shard]:
    chunks = torch.randperm(len(targets), generator=generator(seed, "seldp")).tensor_split(workers)
    turns = [chunks[rank:] + chunks[:rank] for rank in range(workers)]
    joined = [torch.cat(turn) for turn in turns]
    return [
        Shard(indices, targets[indices], tuple(map(len, turn)))
        for turn, indices in zip(turns, joined, strict=True)
    ]


def _by_class(targets: Tensor, number: float, workers: int, seed: int, classes: int) -> list[Shard]:
    held = int(number)
    parts: list[list[Tensor]] = [[] for _ in range(workers)]
    orphans: list[int] = []
    for label in range(classes):
        holders = [i for i in range(workers) if (label - held * i) % classes < held]
        if not holders:
            orphans.append(label)
            continue
        for holder, part in zip(holders, _of_class(targets, label, seed).tensor_split(len(holders)), strict=True):
            parts[holder].append(part)
    if orphans:
        names = ", ".join(map(str, orphans))
        warnings.warn(
            f"shards classes:{held}: no worker of {workers} holds class {names}; it is not trained on",
            stacklevel=3,
        )
    return [_whole(torch.cat(part), targets) for part in parts]


def _dirichlet(targets: Tensor, alpha: float, workers: int, seed: int, classes: int) -> list[Shard]:
    source = np.random.default_rng(mix(seed, "dirichlet"))
    shares = torch.tensor(source.dirichlet([alpha] * workers, classes).tolist(), dtype=torch.float64)
    parts: list[list[Tensor]] = [[] for _ in range(workers)]
    for label in range(classes):
        order = _of_class(targets, label, seed)
        cuts = (shares[label].cumsum(0)[:-1] * len(order)).round().long()
        for rank, part in enumerate(order.tensor_split(cuts)):
            parts[rank].append(part)
    joined = [torch.cat(part) for part in parts]
    for rank in range(workers):
        if not len(joined[rank]):
            most = max(range(workers), key=lambda i: len(joined[i]))
            joined[rank], joined[most] = joined[most][-1:], joined[most][:-1]
    return [_whole(part, targets) for part in joined]


def _of_class(targets: Tensor, label: int, seed: int) -> Tensor:
    """Return the indices of the examples of class `label`, shuffled."""
    indices = (targets == label).nonzero().flatten()
    return indices[torch.randperm(len(indices), generator=generator(seed, "class", label))]


_BASES: dict[str, Callable[[Tensor, float, int, int, int], list[Shard]]] = {
    "iid": _iid,
    "seldp": _seldp,
    "classes": _by_class,
    "dirichlet": _dirichlet,
}
