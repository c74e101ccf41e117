"""OSP, Overlapped Synchronisation Parallel: a part of the gradient travels while the next step computes."""

from __future__ import annotations

import dataclasses
from itertools import compress
from typing import ClassVar, NamedTuple, final

import torch
from torch import Tensor

from swarmstep.cards import CARDS, Card
from swarmstep.comm.base import Comm
from swarmstep.ownership import Own, Shared
from swarmstep.signal import Layout, Roll, Signal
from swarmstep.strategies.base import Strategy, Target, check_range
from swarmstep.when import Every, When

PIECE = 1 << 16  # elements: larger tensors are cut, so that a share can be met
NEWEST = 0.5  # weight of the newest measurement


class OSPState(NamedTuple):
    """What OSP remembers between rounds; K is the number of pieces."""

    deferred: Shared  # which pieces the next round defers, bool [K]
    scores: Own  # how important each piece was to this worker in the last round, float64 [K]
    owed: Own  # lr g_i where it was deferred; after `follow_up` lr (m - g_i), which the next step adds [P]
    weight: Own  # of this worker in the last round, float64 scalar
    measured: Shared  # for `auto`, float64 [5], see `_measured`


class OSPMessage(NamedTuple):
    """What a round brings before the optimizer's step."""

    gradient: Tensor  # the mean where it is urgent, else this worker's own [P]
    scores: Tensor  # as in the state, like what follows
    weight: Tensor
    measured: Tensor
    rates: Tensor  # the lr of each element, [P] or a scalar; 1 where it was not told, or does not count


@final
@dataclasses.dataclass(frozen=True)
class OSP(Strategy[OSPState, OSPMessage]):
    """Average the important pieces of the gradient now, and the rest while the next step computes.

    At step t the pieces are urgent (I) or deferred (D); with g_i the gradient of worker i, m its mean over the
    workers, and h_i what the optimizer gets::

        I   h_i(t) = m(t)
        D   h_i(t) = g_i(t)
        and where D at step t-1, h_i(t) += (m(t-1) - g_i(t-1)) lr(t-1) / lr(t)

    A piece is a tensor, or 65,536 elements of one. Its score is sum |x g_i|, averaged over the workers, so that it
    is the same everywhere; the pieces with the smallest scores are deferred as long as they fit into the share.
    All of the first round is urgent.

    With plain SGD the workers' weighted mean takes the mean gradient at every step, and they differ by
    lr (m - g_i) in D. If their losses are quadratic with the same curvature, the mean is then that of synchronous
    training, for every share and lr. But the spread is multiplied by -lr a in each step (a: curvature in D), so it
    needs lr a < 1, half of what synchronous training bears.

    The optimizer must be linear in the gradient: SGD, with momentum too if lr changes slowly. Gradients that are
    clipped, or an optimizer such as Adam, scale a correction otherwise than what it corrects, and workers drift
    apart for good: use `local=False` there.

    Args:
        share: of the elements that is deferred at most, 0 to 1. 0 is `Synchronous`, bit for bit.
        auto: defer less where that is enough: at most what the network carries during a step's computation, and
            share (1 - loss / first loss), for losses above 0. Both are measured; runs are not reproducible.
        local: True: deferred pieces get g_i at once, and are corrected at the next step. False: they get nothing
            at once, and m(t-1) a step late; the workers then stay equal with any optimizer and clipping, but their
            mean is not that of synchronous training.
        when: the trigger; by default every step. At the steps between rounds each worker uses its own gradient.

    Cost: in a round 2 (W-1)/W P sent by each worker as with `Synchronous`, of which it waits for the urgent share
    only, and 2 (W-1)/W K numbers for the scores. Memory P.

    Source: Chen et al., OSP, arXiv 2306.16926: two stages and a correction by the local gradient, with a parameter
    server. We could read the abstract only: scores, pieces, the rule of `auto` and the additive form are ours.
    """

    card: ClassVar[Card] = CARDS["osp"]
    target: ClassVar[Target] = "gradients"

    share: float = 0.5
    auto: bool = False
    local: bool = True
    when: When = dataclasses.field(default=Every(1), kw_only=True)

    def __post_init__(self) -> None:
        check_range("share", self.share, 0.0, 1.0)

    @property
    def buffers(self) -> tuple[str, ...]:
        return ("local",)

    @property
    def needs_loss(self) -> bool:
        return self.auto

    @property
    def needs_sgd(self) -> bool:
        return self.follows_up and self.local

    @property
    def follows_up(self) -> bool:
        return self.share > 0.0

    def init(self, x: Tensor, layout: Layout, comm: Comm) -> OSPState:
        pieces = len(_pieces(layout))
        return OSPState(
            deferred=torch.zeros(pieces, dtype=torch.bool),
            scores=torch.zeros(pieces, dtype=torch.float64),
            owed=torch.zeros_like(x[: layout.parameters]),
            weight=torch.ones((), dtype=torch.float64),
            measured=torch.zeros(5, dtype=torch.float64),
        )

    def exchange(self, x: Tensor, state: OSPState, signal: Signal, roll: Roll, comm: Comm) -> OSPMessage:
        pieces, weight = _pieces(signal.layout), roll.weight(comm.rank)
        gradient, urgent, scores = x.clone(), ~state.deferred, state.scores
        mean = _taken(x, pieces, urgent)
        if len(mean):
            _put(gradient, pieces, urgent, comm.mean(mean, weight)[0])
        if self.follows_up and signal.weights:
            pairs = zip(signal.weights()[: len(x)].split(pieces), x.split(pieces), strict=True)
            scores = torch.stack([(weights * own).abs_().sum(dtype=torch.float64) for weights, own in pairs]).cpu()
        rate = 1.0 if signal.lr is None or not self.local else signal.lr
        return OSPMessage(
            gradient=gradient,
            scores=scores,
            weight=torch.tensor(weight, dtype=torch.float64),
            measured=_measured(state.measured, roll, len(mean)) if self.auto else state.measured,
            rates=signal.rates() if signal.rates and self.local else x.new_tensor(rate),
        )

    def apply(self, x: Tensor, state: OSPState, message: OSPMessage, layout: Layout) -> None:
        x.copy_(message.gradient)
        state.scores.copy_(message.scores)
        state.weight.copy_(message.weight)
        state.measured.copy_(message.measured)
        if not self.follows_up:
            return
        vectors = [vector.split(_pieces(layout)) for vector in (x, state.owed, message.rates.expand(len(x)))]
        for deferred, piece, owed, rate in zip(state.deferred.tolist(), *vectors, strict=True):
            own = piece * rate if deferred else torch.zeros_like(piece)
            if deferred and not self.local:
                piece.zero_()
            # A step with lr 0 changes nothing, and the correction is lost; its mean over the workers is 0.
            piece += torch.where(rate > 0.0, owed / rate, 0.0)
            owed.copy_(own)

    def follow_up(self, state: OSPState, layout: Layout, comm: Comm) -> OSPState:
        pieces, owed = _pieces(layout), state.owed
        own = _taken(owed, pieces, state.deferred)
        if len(own):
            mean, owed = comm.mean(own, float(state.weight))[0], owed.clone()
            _put(owed, pieces, state.deferred, mean - own if self.local else mean)
        scores, _ = comm.mean(state.scores)
        room = self._share(state.measured, sum(pieces)) * sum(pieces)
        deferred = torch.zeros_like(state.deferred)
        for piece in scores.argsort(stable=True).tolist():
            if pieces[piece] <= room:
                deferred[piece] = True
                room -= pieces[piece]
        return state._replace(owed=owed, deferred=deferred)

    def _share(self, measured: Tensor, elements: int) -> float:
        """Return the largest share of the elements to defer, from what was measured."""
        if not self.auto:
            return self.share
        element, step, loss, first, _ = measured.tolist()
        if not (element > 0.0 and first > 0.0):
            return 0.0
        return min(self.share, step / (element * elements), self.share * max(0.0, 1.0 - loss / first))

    def consensus(self, x: Tensor, message: OSPMessage) -> Tensor:
        return message.gradient

    def result(self, x: Tensor, state: OSPState, comm: Comm) -> Tensor:
        """Return the workers' mean by the weights of the last round, in which what is owed adds up to 0."""
        parameters = len(state.owed)
        mean, _ = comm.mean(x[:parameters], float(state.weight))
        return torch.cat([mean, comm.broadcast(x[parameters:], 0)]) if parameters < len(x) else mean


def _pieces(layout: Layout) -> list[int]:
    """Return the elements of each piece of the gradient."""
    return [min(PIECE, size - start) for size in layout.parameter_sizes for start in range(0, size, PIECE)]


def _taken(x: Tensor, pieces: list[int], which: Tensor) -> Tensor:
    """Return some of the pieces of x, one behind the other, as a copy."""
    return torch.cat([x[:0], *compress(x.split(pieces), which.tolist())])


def _put(x: Tensor, pieces: list[int], which: Tensor, values: Tensor) -> None:
    """Set the pieces that `_taken` returns."""
    chosen = list(compress(x.split(pieces), which.tolist()))
    for piece, value in zip(chosen, values.split([len(piece) for piece in chosen]), strict=True):
        piece.copy_(value)


def _measured(before: Tensor, roll: Roll, urgent: int) -> Tensor:
    """Return seconds of an element on the network and of a step's computation, the loss, the first loss, `urgent`.

    The first two are running means of the slowest worker, the third of all workers; 0 is what is not known yet.

    Args:
        before: the same, one round ago.
        roll: its seconds are those of the last round.
        urgent: elements that this round waits for.
    """
    compute, _, send = roll.seconds[roll.present].amax(dim=0).tolist()
    losses = roll.losses[roll.losses.isfinite()]
    loss = float(losses.mean()) if len(losses) else 0.0
    *known, first, waited_for = before.tolist()
    newest = (send / waited_for if waited_for else 0.0, compute, loss)
    mean = [NEWEST * new + (1.0 - NEWEST) * old if old else new for new, old in zip(newest, known, strict=True)]
    return before.new_tensor([*mean, first or loss, urgent])
