"""The states of the inner optimizers: each worker's own, or averaged in each k-th round (DES-LOC)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from swarmstep.comm.base import Comm
from swarmstep.comm.gather_text import gather_text
from swarmstep.errors import UsageError
from swarmstep.signal import Layout

Rule = str | Mapping[str, int]  # "local", "mean", or in which rounds by the name of a state
LOCAL, MEAN = "local", "mean"


@runtime_checkable
class Keeper(Protocol):
    """An optimizer: what it remembers of each parameter is a mapping of names to tensors."""

    @property
    def state(self) -> Any: ...


class Means(NamedTuple):
    """What a round brings of optimizers' states: a mean for each parameter, by the state's name."""

    of: Mapping[str, Mapping[str, Tensor]]


NO_MEANS = Means({})


class OptimizerStates:
    """What the optimizers of one worker remember, where rounds average it.

    ::

        s_i = sum_j w_j s_j / sum_j w_j      in each k-th round, for each state s (a momentum, say) with its own k

    One all-reduce of the dtype of x carries all that a round averages, never coded. What a worker
    has no state of counts as zero, a state before the first step. Numbers (a count of steps) stay its own.

    Args:
        rule: "mean" averages all states in each round; a mapping, those that it names, in each k-th.
        optimizers: all that train the model.
        model: whose parameters they are.
        dtype: of x.

    Source: DES-LOC, arXiv 2505.22549, averages Adam's x, m and v every K_x, K_m and K_v steps; from a summary. The
    rule, and in which rounds, is ours.
    """

    def __init__(self, rule: Rule, optimizers: Sequence[Keeper], model: nn.Module, dtype: torch.dtype) -> None:
        self._rule, self._optimizers, self._model, self._dtype = rule, optimizers, model, dtype

    def exchange(self, number: int, layout: Layout, weight: float, comm: Comm) -> Means:
        """Return the means that round `number` (from 1) brings; collective, changes nothing.

        Args:
            number: of the round, of this part of the model.
            layout: of this part.
            weight: of this worker in the round.
            comm: the group, without a codec.

        Raises:
            UsageError: on all ranks: a name of the rule is no worker's state, or there is none at all.
        """
        if self._rule == LOCAL or (
            not isinstance(self._rule, str) and all(number % k for k in self._rule.values())
        ):
            return NO_MEANS
        sizes, here = dict(zip(layout.names, layout.sizes, strict=True)), self._by_name()
        told = {state: [name for name in tensors if name in sizes] for state, tensors in here.items()}
        own_weight = weight if here else 0.0
        texts = gather_text(json.dumps([own_weight, told]), comm)
        weights, held = zip(*map(json.loads, texts), strict=True)
        known = sorted({state for worker in held for state in worker})
        chosen = self._chosen(known, number)
        places = [(s, name) for s in chosen for name in sorted({n for w in held for n in w.get(s, ())})]
        if not places or not any(weights):
            return NO_MEANS
        mine = [here.get(s, {}).get(name) for s, name in places]
        like = next((t for t in mine if t is not None), torch.empty(0)).new_empty(0, dtype=self._dtype)
        parts = [
            torch.zeros(sizes[name]).to(like) if t is None else t.detach().to(self._dtype).reshape(-1)
            for t, (_, name) in zip(mine, places, strict=True)
        ]
        mean, _ = comm.mean(torch.cat(parts), own_weight)
        found: dict[str, dict[str, Tensor]] = {}
        for part, (state, name) in zip(mean.split([len(part) for part in parts]), places, strict=True):
            found.setdefault(state, {})[name] = part
        return Means(found)

    @torch.no_grad()
    def apply(self, means: Means) -> None:
        """Set the states to what a round has brought; local."""
        if means.of:
            here = self._by_name()
            for state, tensors in means.of.items():
                for name, mean in tensors.items():
                    if (own := here.get(state, {}).get(name)) is not None:
                        own.copy_(mean.view(own.shape))

    def _chosen(self, known: Sequence[str], number: int) -> list[str]:
        """Return the names of the states that a round averages."""
        if isinstance(self._rule, str):
            if not known:
                raise UsageError("optimizer_state: the optimizers remember nothing to average; take 'local'")
            return [*known]
        unknown = sorted({*self._rule} - {*known})
        if unknown:
            raise UsageError(
                f"optimizer_state: no optimizer has a state {unknown[0]!r} of the parameters' shapes; expected "
                f"{', '.join(known) or 'local, since there is none'}"
            )
        return sorted(state for state, k in self._rule.items() if number % k == 0)

    def _by_name(self) -> dict[str, dict[str, Tensor]]:
        """Return state -> parameter -> tensor, of what has the shape of its parameter."""
        found: dict[str, dict[str, Tensor]] = {}
        for name, parameter in self._model.named_parameters():
            for optimizer in self._optimizers:
                states: Mapping[str, Any] = optimizer.state.get(parameter, {})
                for state, value in states.items():
                    if isinstance(value, Tensor) and value.shape == parameter.shape and state != "step":
                        found.setdefault(state, {})[name] = value
        return found


def described(rule: Rule) -> str:
    """Return a rule as text, the same for equal rules."""
    return rule if isinstance(rule, str) else repr(dict(sorted(rule.items())))


def check(rule: Rule, optimizers: Sequence[Keeper] | None, others: Mapping[str, object]) -> None:
    """Raise UsageError unless this is a rule, with the optimizers that it needs, and goes with the other options.

    Args:
        rule: of the states.
        optimizers: that were given (None: they will be).
        others: options that it does not go with, by name.
    """
    if isinstance(rule, str):
        if rule not in (LOCAL, MEAN):
            raise UsageError(f"optimizer_state: expected 'local', 'mean' or a mapping of names, found {rule!r}")
        if rule == LOCAL:
            return
    elif not rule or any(k < 1 for k in rule.values()):
        raise UsageError(f"optimizer_state: expected names with a number of rounds, 1 or more, found {dict(rule)}")
    if optimizers is not None and not optimizers:
        raise UsageError(f"optimizer_state={rule!r}: give the optimizers, as Options(optimizers=[...])")
    if given := [name for name, value in others.items() if value]:
        raise UsageError(
            f"optimizer_state={rule!r} does not go with {given[0]}: a round sets the states to those of its "
            "start, in whole tensors; expected a round that lands at once, and no island"
        )
