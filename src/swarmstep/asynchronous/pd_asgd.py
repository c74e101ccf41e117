"""PD-ASGD: forward passes go on beside backward passes, which write each layer as soon as its gradient exists."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, final

from torch import Tensor, nn

from swarmstep.asynchronous.contract import Mailbox, Message, Method
from swarmstep.asynchronous.work import Loss, Replica
from swarmstep.cards import ASYNCHRONOUS, Card
from swarmstep.errors import UsageError

FORWARD = 0  # the node of the forward thread


@dataclasses.dataclass
class ForwardState:
    """What the forward thread remembers, and the shared weights; L parameter tensors are the layers."""

    node: int
    x: Tensor  # the weights [P], as they are now
    point: Tensor  # the weights [P] that the forward pass under way has read
    handed: int  # batches handed to a backward thread
    finished: int  # batches whose last layer is written
    writes: list[int]  # [L] of each layer
    reads: dict[int, list[int]]  # `writes` when the forward pass of a batch began, of those not finished
    delays: list[int]  # [L] sum over all writes of those that came between a batch's read and its own write


@dataclasses.dataclass
class BackwardState:
    """What a backward thread remembers."""

    node: int
    jobs: list[tuple[int, Tensor]]  # (batch, point [P]), the first of them under way
    gradient: Tensor  # [P] of the first; empty before its first layer
    left: int  # layers of it that are not computed yet


@final
class PDASGD(Method[Any]):
    """One thread of forward passes, several of backward passes, and weights that they share.

    ::

        forward:    read x ; compute the loss of the next batch ; hand it to a backward thread ; again
        backward:   for each layer l, the last one first:
                        compute grad_l ;  x_l = x_l - lr grad_l    at once, whoever reads x

    Node 0 is the forward thread and holds the weights, nodes 1 to B are the backward threads, which get the
    batches in turn. A job of node 0 is a forward pass, one of a backward thread the gradient of one layer:
    `seconds` makes a simulator's seconds of both passes. All threads are in one machine, so leave the latency
    at 0.

    Args:
        backward: B, at least 1.
        model, loss: as `Replica`, of worker 0; a layer is a parameter tensor.
        lr: of every step, 0 to 10.
        pending: batches handed over and not written yet at which forward passes pause, at least 1; with 1 this is
            SGD.
        layerwise: False: all layers are written together at the end of the backward pass, for comparison.
        seed: of what the loss draws.

    Raises:
        UsageError: an argument is out of its range, or as `Replica`.

    Cost: nothing is sent to other machines. Memory: x, and one copy for each batch under way, in place of its
    activations.

    Source: Fokam et al., arXiv 2410.05985, versions 1 to 3 (PD-ASGD): decoupled threads, twice as many backward as
    forward, and layer-wise writes without locks. Only the abstract and notes were read. Ours: all gradients of a
    batch are at the weights that its forward pass has read, where real threads may see later ones; layers take
    equally long; batches go to the threads in turn; forward passes pause.
    """

    card: ClassVar[Card] = ASYNCHRONOUS["pd-asgd"]

    def __init__(
        self,
        backward: int,
        model: nn.Module,
        loss: Loss,
        *,
        lr: float,
        pending: int = 4,
        layerwise: bool = True,
        seed: int = 0,
    ) -> None:
        if backward < 1 or not 0 <= lr <= 10 or pending < 1:
            raise UsageError(
                f"expected backward of at least 1, lr 0 to 10, pending of at least 1; found backward {backward}, "
                f"lr {lr}, pending {pending}"
            )
        self.workers = 1 + backward
        self._lr, self._pending, self._layerwise, self._seed = lr, pending, layerwise, seed
        self._replica = Replica(model, loss, seed)
        self._slices = self._replica.slices

    @property
    def settings(self) -> dict[str, Any]:
        names = ("lr", "pending", "layerwise", "seed")
        return {"workers": self.workers, **{name: getattr(self, f"_{name}") for name in names}}

    def seconds(self, forward: float, backward: float) -> tuple[float, ...]:
        """Return each node's seconds for one step, if the two passes of a batch take so long."""
        return (forward, *[backward / len(self._slices)] * (self.workers - 1))

    def init(self, node: int, x: Tensor) -> ForwardState | BackwardState:
        none = [0] * len(self._slices)
        if node != FORWARD:
            return BackwardState(node, [], x.new_empty(0), 0)
        return ForwardState(node, x.clone(), x.clone(), 0, 0, [*none], {0: [*none]}, [*none])

    def ready(self, state: ForwardState | BackwardState) -> bool:
        if isinstance(state, ForwardState):
            return state.handed - state.finished < self._pending
        return bool(state.jobs)

    def on_step(self, state: ForwardState | BackwardState, box: Mailbox) -> None:
        if isinstance(state, BackwardState):
            self._layer(state, box)
            return
        to = 1 + state.handed % (self.workers - 1)
        box.post(to, Message(FORWARD, (state.handed,), state.point))
        state.handed += 1
        self._read(state)

    def on_message(self, state: ForwardState | BackwardState, message: Message, box: Mailbox) -> None:
        if isinstance(state, BackwardState):
            state.jobs.append((int(message.numbers[0]), message.x))
            return
        paused = not self.ready(state)
        layer, batch = map(int, message.numbers)
        state.x[self._slices[layer]] -= self._lr * message.x
        state.delays[layer] += state.writes[layer] - state.reads[batch][layer]
        state.writes[layer] += 1
        if layer == 0:
            state.finished += 1
            del state.reads[batch]
        if paused and self.ready(state):
            self._read(state)

    def result(self, states: Mapping[int, ForwardState | BackwardState]) -> Tensor:
        forward = states[FORWARD]
        assert isinstance(forward, ForwardState)
        return forward.x.clone()

    def _read(self, state: ForwardState) -> None:
        """Begin the next forward pass with the newest weights."""
        state.point = state.x.clone()
        state.reads[state.handed] = [*state.writes]

    def _layer(self, state: BackwardState, box: Mailbox) -> None:
        """Finish one layer of the first job."""
        batch, point = state.jobs[0]
        if not state.left:
            self._replica.flat.write(point)
            self._replica.backward(FORWARD, batch)
            state.gradient, state.left = self._replica.flat.gradient(), len(self._slices)
        state.left -= 1
        every = range(len(self._slices) - 1, -1, -1)
        for layer in [state.left] if self._layerwise else every if not state.left else []:
            box.post(FORWARD, Message(state.node, (layer, batch), state.gradient[self._slices[layer]].clone()))
        if not state.left:
            state.jobs.pop(0)
