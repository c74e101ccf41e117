"""Pseudo-synchronization: some local steps are a pull to where the last round has left the weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from swarmstep.errors import UsageError
from swarmstep.objectives.inner import Inner, Wrapper
from swarmstep.seeding import generator


class PseudoSynchronization(Wrapper):
    """Any optimizer, of which some steps are replaced by a pull to the weights after the last round (PALSGD).

    ::

        with probability p:  v = v - a (v - v_ref)     no gradient, no communication
        else:                a step of the optimizer
        v_ref = v            after a round has landed; at first v as it was when this was made

    Workers then stay nearer to each other between two rounds, which allows rarer ones. Use it in the place of the
    optimizer, with any strategy, and tell it of rounds::

        optimizer = PseudoSynchronization(torch.optim.SGD(model.parameters(), lr=0.1), 0.1, 0.5, rank=comm.rank)
        for batch in batches:
            ...
            optimizer.step()
            if sync.step(loss):
                optimizer.landed()

    Args:
        optimizer: of torch, already made.
        probability: p, of a pull, 0 up to below 1.
        pull: a, 0 to 1.
        seed: of the draws.
        rank: of this worker; each draws for itself.

    Raises:
        UsageError: a value is out of its range.

    Cost: no traffic; a vector of the size of the parameters. A step that is a pull does not use its gradient.

    Source: Naganuma, Zhang, Yue, Mitliagkas, Witte, Hewett, Lee, PALSGD, arXiv 2504.18454, of which we could read
    the abstract and a summary: local steps, and with some probability a moving average toward the last common
    weights. The form above, and that a pull replaces a step, are ours; so there are no defaults.
    """

    def __init__(self, optimizer: Inner, probability: float, pull: float, seed: int = 0, rank: int = 0) -> None:
        if not (0.0 <= probability < 1.0 and 0.0 <= pull <= 1.0):
            raise UsageError(
                "PseudoSynchronization: expected a probability of 0 up to below 1 and a pull of 0 to 1, found "
                f"{probability}, {pull}"
            )
        super().__init__(optimizer)
        self.probability, self.pull, self.seed, self.rank = probability, pull, seed, rank
        self._parameters: list[Tensor] = [p for group in self.param_groups for p in group["params"]]
        self._references = [p.detach().clone() for p in self._parameters]
        self._steps = 0

    @torch.no_grad()
    def step(self) -> None:
        """Take a step of the optimizer, or be pulled."""
        self._steps += 1
        drawn = torch.rand((), generator=generator(self.seed, self._steps, self.rank, "palsgd"))
        if float(drawn) >= self.probability:
            self.optimizer.step()
            return
        for parameter, reference in zip(self._parameters, self._references, strict=True):
            parameter.lerp_(reference, self.pull)

    @torch.no_grad()
    def landed(self) -> None:
        """Take note that a round has landed: the weights are the reference now."""
        for parameter, reference in zip(self._parameters, self._references, strict=True):
            reference.copy_(parameter)

    def state_dict(self) -> dict[str, Any]:
        """Return what there is to save."""
        references = [tensor.clone() for tensor in self._references]
        return {"optimizer": self.optimizer.state_dict(), "steps": self._steps, "references": references}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on from a `state_dict`; ValueError or RuntimeError where it does not fit."""
        for tensor, value in zip(self._references, saved["references"], strict=True):
            tensor.copy_(value)
        self.optimizer.load_state_dict(saved["optimizer"])
        self._steps = saved["steps"]
