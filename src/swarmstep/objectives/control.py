"""Control variates: what a worker's gradients differ by from those of all is taken off."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from swarmstep.objectives.inner import Inner, Wrapper


class MeanGradient(nn.Module):
    """A worker's mean gradient since the last round, as a buffer: a round leaves the mean of all workers there.

    Put it into the module that the Synchronizer gets, beside the model.

    Args:
        parameters: of the model.
    """

    value: Tensor  # [P]

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        super().__init__()
        like = parameters[0]
        self.register_buffer("value", like.new_zeros(sum(p.numel() for p in parameters)).detach())


class ControlVariates(Wrapper):
    """Any optimizer, whose gradients are corrected by how the worker's differed from all workers' a round ago.

    ::

        g = gradient - c_i + c      c_i: the mean of the worker's own gradients between the last two rounds
                                    c: the mean of c_i over the workers; both 0 before the first round

    Without it, workers whose data differ drift apart between rounds, and their mean ends where it should not. Use
    it in the place of the optimizer, with a `MeanGradient` in the module that is synchronized, and tell it of
    rounds::

        mean = MeanGradient([*model.parameters()])
        sync = Synchronizer(nn.ModuleDict({"model": model, "mean": mean}), LocalSGD(when=Every(8)), comm)
        optimizer = ControlVariates(torch.optim.SGD(model.parameters(), lr=0.1), mean)
        for batch in batches:
            ...
            optimizer.step()
            if sync.step(loss):
                optimizer.landed()

    For strategies that give buffers the mean of all workers (local SGD, DiLoCo, the swarm; not with
    `Options(buffers="local")`, and not with a delay, during which the mean gradient goes on).

    Args:
        optimizer: of torch, already made, of the parameters of `mean`, in their order.
        mean: where the mean gradient is.

    Cost: P elements more in each round, as they are beside a codec; three vectors [P].

    Source: SCAFFOLD (Karimireddy et al., arXiv 1910.06378), as the CODASCA example of the LibAUC library has it:
    c_i is the mean of the gradients of the last round. There the gradients are clipped before the correction and
    not in the mean; here they are the same.
    """

    def __init__(self, optimizer: Inner, mean: MeanGradient) -> None:
        super().__init__(optimizer)
        self.mean = mean
        self._parameters: list[Tensor] = [p for group in self.param_groups for p in group["params"]]
        self._sizes = [p.numel() for p in self._parameters]
        self._count = 0  # steps since the last round
        self._own, self._correction = torch.zeros_like(mean.value), torch.zeros_like(mean.value)

    @torch.no_grad()
    def step(self) -> None:
        """Take a step of the optimizer with corrected gradients."""
        self._count += 1
        pieces = zip(
            self._parameters, self._own.split(self._sizes), self._correction.split(self._sizes), strict=True
        )
        for parameter, own, correction in pieces:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradient = parameter.grad.view(-1)
            own.add_(gradient - own, alpha=1 / self._count)
            gradient += correction
        self.optimizer.step()
        self.mean.value.copy_(self._own)

    @torch.no_grad()
    def landed(self) -> None:
        """Take note that a round has landed: the mean gradient is that of all workers now."""
        torch.sub(self.mean.value, self._own, out=self._correction)
        self._own.zero_()
        self._count = 0

    def state_dict(self) -> dict[str, Any]:
        """Return what there is to save."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "count": self._count,
            "own": self._own.clone(),
            "correction": self._correction.clone(),
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on from a `state_dict`; ValueError or RuntimeError where it does not fit."""
        self._own.copy_(saved["own"])
        self._correction.copy_(saved["correction"])
        self._count = saved["count"]
        self.optimizer.load_state_dict(saved["optimizer"])
