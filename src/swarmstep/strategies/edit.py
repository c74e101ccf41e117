"""EDiT: DiLoCo's outer step, with workers whose step is out of line left out, tensor by tensor."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, NamedTuple, final

import torch
from torch import Tensor

from swarmstep.cards import CARDS, Card
from swarmstep.comm.base import Comm
from swarmstep.errors import UsageError
from swarmstep.ownership import PerWorker, Shared
from swarmstep.signal import Layout, Roll, Signal
from swarmstep.strategies.base import Strategy, check_range
from swarmstep.strategies.parts.blocks import squared_distance
from swarmstep.strategies.parts.outer_step import OuterStep
from swarmstep.when import Every, When


class EDiTState(NamedTuple):
    """The common model, its momentum, and how long each worker's steps have been in each of the K tensors."""

    anchor: Shared  # x [P]
    velocity: Shared  # u [P], zero for buffers
    average: PerWorker  # of the lengths, float64 [W, K]
    variance: PerWorker  # of the lengths, float64 [W, K]
    rounds: PerWorker  # in which the worker took part, float64 [W, 1]


class EDiTMessage(NamedTuple):
    """What a round brings: x + the penalized mean step [P], and the workers' lengths as they are now known."""

    mean: Tensor
    average: Tensor
    variance: Tensor
    rounds: Tensor


@final
@dataclasses.dataclass(frozen=True)
class EDiT(Strategy[EDiTState, EDiTMessage]):
    """DiLoCo with the pseudo-gradient penalty of EDiT: each tensor's steps are gated, weighted and clipped.

    ::

        D_ik = worker i's step in tensor k;  l_ik = |D_ik|
        i counts in k unless it has taken part in `warm_up` rounds and l_ik > m_ik + z sd_ik
        a_ik = softmax over those that count of -l_ik
        D_k  = sum_i a_ik D_ik, shortened to `clip`;  0 if none counts
        x    = outer Nesterov step along D
        m_ik, sd_ik^2: running mean and variance of the l_ik that counted, with the rate r

    Buffers take the plain mean. The model at the end is x, without the local steps after the last round.

    Args:
        lr: s, of the outer optimizer, 0 to 10.
        momentum: w, of the outer optimizer, 0 to 0.9999.
        z: how many standard deviations a step may be longer than the worker's own have been, 0 to 1000.
        warm_up: rounds of a worker before its gate closes, at least 2.
        rate: r, of mean and variance, above 0 and up to 1.
        clip: the greatest length of a tensor's step, above 0, in the unit of the weights.
        when: the trigger; by default every 128th step.

    Raises:
        UsageError: an argument is out of its range.

    Cost: one all-reduce of P a round, 2 (W-1)/W P sent by each worker; 8 bytes more for each tensor in the roll
    call. Memory: x and u, 2 P.

    Source: Cheng, Gao, Yue, Ye, Jiang, Sha, EDiT, arXiv 2412.07210; gate, weights, clip and their settings are
    those of the authors' code, as we have them second hand. Ours: that mean and variance start at the first
    length, and not at 0; that they are part of checkpoints; that the lengths of a step that is left out are not
    learnt; and n = 128. Their sharding, and synchronization by layers, are not included; `Options(island=...)`
    holds shards.
    """

    card: ClassVar[Card] = CARDS["edit"]

    lr: float = 0.7
    momentum: float = 0.8
    z: float = 3.0
    warm_up: int = 100
    rate: float = 0.02
    clip: float = 10.0
    when: When = dataclasses.field(default=Every(128), kw_only=True)

    def __post_init__(self) -> None:
        check_range("lr", self.lr, 0.0, 10.0)
        check_range("momentum", self.momentum, 0.0, 0.9999)
        check_range("z", self.z, 0.0, 1000.0)
        check_range("rate", self.rate, 1e-6, 1.0)
        if self.warm_up < 2 or not self.clip > 0.0:
            raise UsageError(
                f"warm_up, clip: expected at least 2 rounds, and above 0, found {self.warm_up}, {self.clip}"
            )

    @property
    def common(self) -> str:
        return "weights"

    def init(self, x: Tensor, layout: Layout, comm: Comm) -> EDiTState:
        lengths = torch.zeros(comm.size, len(layout.parameter_sizes), dtype=torch.float64)
        rounds = torch.zeros(comm.size, 1, dtype=torch.float64)
        return EDiTState(x.clone(), torch.zeros_like(x), lengths, lengths.clone(), rounds)

    def report(self, x: Tensor, state: EDiTState, layout: Layout) -> tuple[float, ...]:
        """Return the squared length of this worker's step in each tensor."""
        return tuple(_squares(x, state.anchor, layout).tolist())

    def exchange(self, x: Tensor, state: EDiTState, signal: Signal, roll: Roll, comm: Comm) -> EDiTMessage:
        layout, lengths, present = signal.layout, roll.reports.sqrt(), roll.present[:, None]
        excess, warm = lengths - state.average, state.rounds >= self.warm_up
        counts = present & ~(warm & (excess > self.z * state.variance.sqrt()))
        # Where none counts all logits are -inf, the softmax is NaN, and the step 0.
        shares = torch.where(counts, -lengths, -torch.inf).softmax(0).nan_to_num(0.0)
        sent = x.clone()
        own = (shares[comm.rank] * float(present.sum())).tolist()
        for part, start, share in _tensors(sent, state.anchor, own, layout):
            part.sub_(start).mul_(share).add_(start)
        mean, _ = comm.mean(sent, float(present[comm.rank]))
        found = signal.total(_squares(mean, state.anchor, layout)).sqrt()
        clips = (self.clip / found.clamp(min=self.clip)).tolist()
        for part, start, share in _tensors(mean, state.anchor, clips, layout):
            torch.lerp(start, part, share, out=part)
        first = counts & (state.rounds == 0)
        average = torch.where(counts, state.average + self.rate * excess, state.average)
        variance = torch.where(counts, (1 - self.rate) * (state.variance + self.rate * excess**2), state.variance)
        return EDiTMessage(
            mean,
            torch.where(first, lengths, average),
            torch.where(first, 0.0, variance),
            state.rounds + present.double(),
        )

    def apply(self, x: Tensor, state: EDiTState, message: EDiTMessage, layout: Layout) -> None:
        n, step = layout.parameters, OuterStep(self.lr, self.momentum)
        step.take(x[:n], state.anchor[:n], state.velocity[:n], message.mean[:n], 1.0)
        state.anchor[n:] = message.mean[n:]
        x[n:] = message.mean[n:]
        state.average.copy_(message.average)
        state.variance.copy_(message.variance)
        state.rounds.copy_(message.rounds)

    def consensus(self, x: Tensor, message: EDiTMessage) -> Tensor:
        return message.mean

    def result(self, x: Tensor, state: EDiTState, comm: Comm) -> Tensor:
        return state.anchor.clone()


def _tensors(
    x: Tensor, anchor: Tensor, factors: list[float], layout: Layout
) -> list[tuple[Tensor, Tensor, float]]:
    """Return each parameter tensor's part of x and of the anchor, with its factor."""
    n, sizes = layout.parameters, layout.parameter_sizes
    return list(zip(x[:n].split(sizes), anchor[:n].split(sizes), factors, strict=True))


def _squares(x: Tensor, anchor: Tensor, layout: Layout) -> Tensor:
    """Return the squared length of x - anchor in each parameter tensor, float64 [K] on the CPU."""
    parts = _tensors(x, anchor, [1.0] * len(layout.parameter_sizes), layout)
    found = [squared_distance(part, start) for part, start, _ in parts]
    return torch.tensor(found, dtype=torch.float64)
