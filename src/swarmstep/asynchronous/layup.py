"""LayUp: each layer goes to a random peer as soon as the backward pass has its gradient; no server, no barrier."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from swarmstep.asynchronous.contract import Mailbox, Message, Method
from swarmstep.asynchronous.work import Loss, Replica
from swarmstep.cards import ASYNCHRONOUS, Card
from swarmstep.errors import NotFinite, UsageError
from swarmstep.seeding import generator


@dataclasses.dataclass
class LayUpState:
    """What a worker remembers; L parameter tensors are the layers."""

    node: int
    x: Tensor  # its model [P], to which arrivals are mixed at once
    point: Tensor  # its model [P] at the start of the present step, of which it computes the gradient
    weights: list[float]  # [L] log2 w, at first 0; -inf in a newcomer until it has the layer
    done: int  # steps; a newcomer goes on from the largest count that has come with its first layers
    gone: list[int]  # peers that are not there


@final
class LayUp(Method[LayUpState]):
    """Layer-wise asynchronous gossip with push-sum weights.

    ::

        as soon as grad_l is there:  x_l = x_l - lr grad_l
                                     w_l = w_l / 2 ; send (x_l, w_l) to a random peer
        on arrival:                  x_l = (w_l x_l + w x) / (w_l + w) ; w_l = w_l + w
        the model:                   sum_i w_i x_i / sum_i w_i, layer by layer

    A message that is lost takes its weight along, so that what is left is still a mean of models. The gradient is
    that of the weights at the start of the step; what arrives meanwhile is in x already when the layer's step is
    taken. With lr = 0 the sums of w and of w x over workers and messages, the lost ones included, never
    change.

    The weights are kept as logarithms: with lost messages all of them shrink together without end, and as numbers
    they would be 0 after some thousand steps.

    A worker that is lost is drawn no more by those who notice; its weight, and that of the messages to it, is gone
    with it. A newcomer begins with weight 0, so that its coming changes neither sum, and each that finds it sends
    it all layers, with half of its own weight: the newcomer then has a weighted mean of their models. It takes its
    first step once it has all layers. After a loss of the connection only, the two do the same.

    Args:
        workers: W, at least 1; one alone does plain SGD.
        model, loss: as `Replica`; a layer is a parameter tensor. A layer without a gradient is not sent.
        lr: of every step, 0 to 10.
        seed: of peers, and of what the loss draws.

    Raises:
        UsageError: an argument is out of its range, or as `Replica`.
        NotFinite: at a step that leaves a layer with NaN or infinity, before it is sent.

    Cost: a worker sends P for each step, in L messages. Memory: x and its copy at the start of the step, 2 P.

    Source: Fokam et al., LayUp, arXiv 2410.05985 v4: asynchronous and decentralised, the update of each layer
    sent to a random peer during the backward pass and applied on arrival without buffers. Ours, since only the
    abstract was read: push-sum, plain SGD as the layer's step, weights in place of differences on the wire, and
    workers that come and go. Versions 1 to 3 under the same number are another method: `PDASGD`.
    """

    card: ClassVar[Card] = ASYNCHRONOUS["layup"]
    may_lose: ClassVar[bool] = True

    def __init__(self, workers: int, model: nn.Module, loss: Loss, *, lr: float, seed: int = 0) -> None:
        if workers < 1 or not 0 <= lr <= 10:
            raise UsageError(f"expected workers of at least 1, lr 0 to 10; found workers {workers}, lr {lr}")
        self.workers, self._lr, self._seed = workers, lr, seed
        self._replica = Replica(model, loss, seed)
        self._slices = self._replica.slices

    @property
    def settings(self) -> dict[str, Any]:
        return {"workers": self.workers, "lr": self._lr, "seed": self._seed}

    def init(self, node: int, x: Tensor) -> LayUpState:
        return LayUpState(node, x.clone(), x.clone(), [0.0] * len(self._slices), 0, [])

    def enter(self, node: int, x: Tensor) -> LayUpState:
        return dataclasses.replace(self.init(node, x), weights=[-math.inf] * len(self._slices))

    def ready(self, state: LayUpState) -> bool:
        return -math.inf not in state.weights

    def on_step(self, state: LayUpState, box: Mailbox) -> None:
        self._replica.flat.write(state.point)
        hooks = [
            parameter.register_post_accumulate_grad_hook(partial(self._leave, state, box, layer))
            for layer, parameter in enumerate(self._replica.layers)
        ]
        try:
            self._replica.backward(state.node, state.done)
        finally:
            for hook in hooks:
                hook.remove()
        state.done += 1
        state.point = state.x.clone()

    @torch.no_grad()
    def _leave(self, state: LayUpState, box: Mailbox, layer: int, parameter: Tensor) -> None:
        """Take a layer's step, in the backward pass, and send it on its way."""
        assert parameter.grad is not None
        piece = state.x[self._slices[layer]]
        piece.add_(parameter.grad.reshape(-1), alpha=-self._lr)
        if not piece.isfinite().all():  # before anybody else has it
            raise NotFinite(
                f"worker {state.node}, step {state.done}: {self._replica.flat.layout.names[layer]} is not finite; "
                "lower the learning rate, or look at that worker's data"
            )
        peers = [(state.node + k) % self.workers for k in range(1, self.workers)]
        peers = [peer for peer in peers if peer not in state.gone]
        if peers:
            rng = generator(self._seed, "peer", state.node, state.done, layer)
            self._send(state, layer, peers[int(torch.randint(len(peers), (1,), generator=rng))], box)

    def _send(self, state: LayUpState, layer: int, to: int, box: Mailbox) -> None:
        """Send a layer, with half of its weight."""
        state.weights[layer] -= 1
        piece = state.x[self._slices[layer]]
        box.post(to, Message(state.node, (layer, state.weights[layer], state.done), piece.clone()))

    def hand_over(self, state: LayUpState, to: int, box: Mailbox) -> None:
        """Send another worker all layers with all of their weight, as the last that comes from this one.

        Where all others do so, `to` then has the weighted mean of all models. The state stays as it is.
        """
        for layer, piece in enumerate(self._slices):
            last = layer == len(self._slices) - 1
            numbers = layer, state.weights[layer], state.done, last
            box.post(to, Message(state.node, numbers, state.x[piece].clone()))

    def is_last(self, message: Message) -> bool:
        """Return whether nothing more comes of what a worker hands over."""
        return len(message.numbers) > 3 and bool(message.numbers[3])

    def on_left(self, state: LayUpState, node: int, box: Mailbox) -> None:
        state.gone.append(node)

    def on_joined(self, state: LayUpState, node: int, given: int, box: Mailbox) -> None:
        if node in state.gone:
            state.gone.remove(node)
        if self.ready(state):
            for layer in range(len(self._slices)):
                self._send(state, layer, node, box)

    def on_message(self, state: LayUpState, message: Message, box: Mailbox) -> None:
        layer, other, done = int(message.numbers[0]), message.numbers[1], int(message.numbers[2])
        own = state.weights[layer]
        piece = state.x[self._slices[layer]]
        piece.lerp_(message.x, _share(other, own))
        if own == -math.inf:
            state.point[self._slices[layer]], state.done = message.x, max(state.done, done)
        state.weights[layer] = max(own, other) + math.log2(1 + 2.0 ** -abs(own - other))

    def result(self, states: Mapping[int, LayUpState]) -> Tensor:
        mean = torch.empty_like(states[0].x)
        for layer, piece in enumerate(self._slices):
            most = max(state.weights[layer] for state in states.values())
            weights = [2.0 ** (state.weights[layer] - most) for state in states.values()]
            parts = [w * state.x[piece] for w, state in zip(weights, states.values(), strict=True)]
            mean[piece] = sum(parts[1:], parts[0]) / sum(weights)
        return mean


def _share(log_w: float, log_v: float) -> float:
    """Return w / (w + v), whatever their size."""
    ratio = 2.0 ** -abs(log_w - log_v)
    return ratio / (1 + ratio) if log_w < log_v else 1 / (1 + ratio)
