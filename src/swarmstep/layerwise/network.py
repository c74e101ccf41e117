"""The trained network as a plain module of torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

TINY = 1e-300


def hidden(y: Tensor, output: Tensor, random: Tensor) -> Tensor:
    """Return what the next layer sees: relu of O y, of -O y, and of random features, whose part has norm 1.

    Args:
        y: what this layer sees [B, n], float64.
        output: its O [Q, n].
        random: R [k, n], any floating point.

    Returns:
        [B, 2 Q + k], float64.
    """
    linear, drawn = y @ output.T, y @ random.to(y.dtype).T
    drawn = drawn / drawn.norm(dim=1, keepdim=True).clamp_min(TINY)
    return torch.cat([linear, -linear, drawn], 1).relu_()


class SSFN(nn.Module):
    """A self-size estimating feed-forward network: random features, and a learned linear map after each layer.

    ::

        y_1 = relu([V O_0 x; R_1 x / |R_1 x|])   y_{l+1} = relu([V O_l y_l; R_{l+1} y_l / |R_{l+1} y_l|])
        forward(x) = O_L y_L                      V = [I; -I]

    A run's file is loaded by ``SSFN(inputs, outputs, nodes).load_state_dict(load_file("model.safetensors"))``,
    with the `nodes` of its summary.

    Args:
        inputs: P, the numbers of an example.
        outputs: Q, the numbers of a target.
        nodes: how many random features each hidden layer has.

    Attributes:
        learned: O_0 [Q, P], then O_l [Q, 2 Q + nodes of layer l]; float64, no gradients.
        random: R_l of each hidden layer, buffers ``random_1`` and so on, float32.
    """

    def __init__(self, inputs: int, outputs: int, nodes: Sequence[int]) -> None:
        super().__init__()
        widths = [inputs, *(2 * outputs + count for count in nodes)]
        zeros = (torch.zeros(outputs, width, dtype=torch.float64) for width in widths)
        self.learned = nn.ParameterList([nn.Parameter(zero, requires_grad=False) for zero in zeros])
        for layer, count in enumerate(nodes, start=1):
            self.register_buffer(f"random_{layer}", torch.zeros(count, widths[layer - 1]))

    @property
    def random(self) -> list[Tensor]:
        return [*self.buffers()]

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs [B, Q], float64, of inputs [B, ...] with P numbers each."""
        first, *later = self.learned
        y, output = x.flatten(1).to(first.dtype), first
        for random, following in zip(self.random, later, strict=True):
            y, output = hidden(y, output, random), following
        return y @ output.T
