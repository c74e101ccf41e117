"""The digits by a spiking network: leaky neurons of snnTorch, 25 time steps, trained with surrogate gradients.

Needs snnTorch: the extra `spiking`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from swarmstep.optional_imports import library
from swarmstep.workloads import digits
from swarmstep.workloads.base import Workload
from swarmstep.workloads.defaults import BUILT_IN

PIXELS, HIDDEN, CLASSES = 64, 128, 10
STEPS = 25
BETA = 0.9


class Spiking(nn.Module):
    """The network 64-128-10 of leaky neurons: currents [B, ...] of 64 to spikes [B, 25, 138], each 0 or 1.

    The first 128 spikes of a time step are those of the hidden neurons, the last 10 those of the output. The
    input stays the same for all steps. With U the membrane potential, I the current, S the spikes::

        U(t) = beta U(t-1) + I(t) - S(t-1),    S(t) = 1 where U(t) > 1

    The gradient of S is snnTorch's own surrogate, the arcus tangent. Membrane potentials begin at 0 in each call
    and are given up at its end: no worker has the state of another, nor of its own batch before.
    """

    def __init__(self) -> None:
        super().__init__()
        self.to_hidden, self.hidden = nn.Linear(PIXELS, HIDDEN), neurons()
        self.to_output, self.output = nn.Linear(HIDDEN, CLASSES), neurons()

    def forward(self, x: Tensor) -> Tensor:
        current = self.to_hidden(x.flatten(1))
        hidden = fire(self.hidden, current.expand(STEPS, -1, -1))
        output = fire(self.output, self.to_output(hidden))
        return torch.cat([hidden, output], dim=2).transpose(0, 1)


def neurons() -> nn.Module:
    """Return leaky neurons whose constants are no part of what is trained, averaged or saved."""
    leaky: nn.Module = _snntorch().Leaky(beta=BETA)
    for name, constant in list(leaky.named_buffers()):
        leaky.register_buffer(name, constant, persistent=False)
    return leaky


def fire(leaky: Any, currents: Tensor) -> Tensor:
    """Return the spikes [T, B, N] of neurons that begin at rest, for currents [T, B, N]."""
    potential, spikes = torch.zeros_like(currents[0]), list[Tensor]()
    for current in currents:
        spike, potential = leaky(current, potential)
        spikes.append(spike)
    leaky.reset_mem()  # the module keeps it, with its graph
    return torch.stack(spikes)


def _snntorch() -> Any:
    return library("snntorch", "spiking", "the workload spiking needs")


def counts(outputs: Tensor) -> Tensor:
    """Return how often each output neuron has fired, [B, 10], of spikes [B, 25, 138]."""
    return outputs[:, :, HIDDEN:].sum(1)


def count_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy of the counts as logits, for classes [B]."""
    return cross_entropy(counts(outputs), targets)


def right_counts(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return for how many of the B the target's neuron has fired most often; of equal ones the first counts."""
    return (counts(outputs).argmax(1) == targets).sum()


def hidden_rate(outputs: Tensor) -> Tensor:
    """Return spikes per hidden neuron and time step, 0 to 1."""
    return outputs[:, :, :HIDDEN].mean()


def output_rate(outputs: Tensor) -> Tensor:
    """Return spikes per output neuron and time step, 0 to 1."""
    return outputs[:, :, HIDDEN:].mean()


def prepare(inputs: Tensor) -> Tensor:
    """Return uint8 [B, 8, 8] in 0..16 as float32 [B, 1, 8, 8] in 0..1."""
    return inputs.unsqueeze(1).float().div(16)


MODELS: Mapping[str, Callable[[], nn.Module]] = {"leaky": Spiking}


def load(data: Path | None = None) -> Workload:
    """Return the workload: the digits as `digits.load` splits them. `data` is not used.

    Raises UsageError where snnTorch is not installed.
    """
    _snntorch()
    workload = digits.load(data)
    return Workload(
        name="spiking",
        train=workload.train,
        test=workload.test,
        models=MODELS,
        defaults=BUILT_IN["spiking"].defaults,
        classes=CLASSES,
        prepare=prepare,
        loss=count_loss,
        correct=right_counts,
        averages={"hidden_rate": hidden_rate, "output_rate": output_rate},
    )
