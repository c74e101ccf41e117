"""The informed swarm: every particle is drawn to all the others, as far as the swarm trusts them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import ClassVar, NamedTuple, final

import torch
from torch import Tensor

from swarmstep.cards import CARDS, Card
from swarmstep.comm.base import Comm
from swarmstep.errors import NotFinite, UsageError
from swarmstep.ownership import PerWorker, Shared
from swarmstep.signal import Distrust, Layout, Roll, Signal
from swarmstep.strategies import trust
from swarmstep.strategies.base import Strategy, check_choice, check_range
from swarmstep.strategies.blocks import blocks, squared_distance


class InformedSwarmState(NamedTuple):
    """What the swarm shares: where it is, where it is going, and whom it trusts."""

    anchor: Shared  # x after the last round [P]
    velocity: Shared  # u [P]
    effect: PerWorker  # e [W] float64: what the swarm gains by each worker, in typical gains
    variance: PerWorker  # [W] float64, of one test's outcome
    standing: PerWorker  # [W] int64: what the tests say, an index of trust.REASONS
    since: PerWorker  # [W] int64: the step of the present standing
    passing: PerWorker  # [W] int64: why the last round alone left a worker out, an index of trust.REASONS
    step: Shared  # of the last round, int64
    tests: Shared  # t, int64
    spent: Shared  # local steps' worth of probing after the first tests, float64
    cost: Shared  # of one probe, in local steps, float64; -1 before the first round


class InformedSwarmMessage(NamedTuple):
    """The message: the swarm's new consensus and standing."""

    consensus: Tensor  # c [P]
    effect: Tensor
    variance: Tensor
    standing: Tensor
    since: Tensor
    passing: Tensor
    step: Tensor
    tests: Tensor
    spent: Tensor
    cost: Tensor


@final
@dataclasses.dataclass(frozen=True)
class InformedSwarm(Strategy[InformedSwarmState, InformedSwarmMessage]):
    """Move the whole swarm by what all trusted workers found, with the round's displacement as velocity.

    ::

        c = sum_i a_i x_i / sum_i a_i         consensus; a_i >= 0: the swarm's trust times the worker's weight
        d = c - x                             what the round found; x: the common weights before it
        u = w u + d                           the swarm's velocity
        x = x + s (d + w u)                   with look-ahead
            x + s u                           without

    With uniform trust, w = 0 and s = 1 are local SGD; w = 0.9, s = 0.7 with look-ahead are DiLoCo; s = 1
    without look-ahead is block momentum (BMUF).

    Trust "leave_one_out": each worker measures, on a probe batch that is the same for all, what the swarm would
    lose without it (without, or if it is distrusted, with); a sequential test over the rounds, in
    `swarmstep.strategies.trust`, decides whose weight is 0. The first three rounds test; after them tests are
    spaced so that they cost the fraction `budget` of the local steps. At least half of the workers stay
    trusted. A worker judges itself: this is for workers that are faulty, not for liars, unless `audit`.

    Whatever the trust, a worker with weights that are not finite, or with a step more than `gate` times as
    long as the median, has weight 0 in that round and takes the swarm's weights.

    Args:
        trust: "uniform", a_i = 1/K; "loss", a_i ~ exp(-(f_i / median - 1) / temperature) of the training
            losses f_i; "leave_one_out"; "auto", leave_one_out where a probe is given, else uniform.
        social: s, above 0, to 2: the pull to the consensus.
        inertia: w, 0 to below 1.
        look_ahead: as in Nesterov's momentum.
        temperature: of trust="loss", above 0.
        margin: k, standard errors below 0 at which a worker loses trust, 0 to 100.
        memory: beta, 0 to below 1: of the running mean of the effects.
        gate: longest step allowed, in medians, above 10; with tests a tenth of it until the third, and for a
            worker whose effect is negative, so that no wild worker enters weights and velocity on credit.
        budget: of probing, as a fraction of the local steps, above 0, to 1.
        audit: the next rank judges instead of the worker itself: one more vector P a round with a test.
        when: the trigger; the default is each 16th step.

    Raises:
        UsageError: an argument is out of its range.

    Cost: one all-reduce of P a round, 2 (W-1)/W P sent by each worker; in a round that changes a standing a
    second one. A test costs two probes and a gather of two numbers. Memory: x and u, 2 P.

    Source: the fully informed particle swarm of Mendes, Kennedy and Neves (2004); the displacement as velocity,
    leave-one-out trust and the defaults are ours.
    """

    card: ClassVar[Card] = CARDS["swarm"]

    trust: str = "auto"
    social: float = 0.7
    inertia: float = 0.9
    look_ahead: bool = True
    temperature: float = 0.1
    margin: float = 4.0
    memory: float = 0.9
    gate: float = 50.0
    budget: float = 0.04
    audit: bool = False

    def __post_init__(self) -> None:
        check_choice("trust", self.trust, ("auto", "uniform", "loss", "leave_one_out"))
        check_range("inertia", self.inertia, 0.0, 0.9999)
        check_range("memory", self.memory, 0.0, 0.9999)
        check_range("margin", self.margin, 0.0, 100.0)
        check_range("social", self.social, 1e-9, 2.0)
        check_range("temperature", self.temperature, 1e-9, 1e9)
        check_range("budget", self.budget, 1e-9, 1.0)
        if not self.gate > 10:
            raise UsageError(f"gate: expected a number above 10, found {self.gate!r}")

    @property
    def needs_probe(self) -> bool:
        return self.trust == "leave_one_out"

    @property
    def contains_not_finite(self) -> bool:
        return True

    @property
    def common(self) -> str:
        return "weights"

    def init(self, x: Tensor, layout: Layout, comm: Comm) -> InformedSwarmState:
        each = torch.zeros(comm.size, dtype=torch.float64)
        whole = torch.zeros(comm.size, dtype=torch.int64)
        return InformedSwarmState(
            anchor=x.clone(),
            velocity=torch.zeros_like(x),
            effect=each.clone(),
            variance=each.clone(),
            standing=whole.clone(),
            since=whole.clone(),
            passing=whole.clone(),
            step=torch.tensor(0),
            tests=torch.tensor(0),
            spent=torch.tensor(0.0, dtype=torch.float64),
            cost=torch.tensor(-1.0, dtype=torch.float64),
        )

    def carry(
        self, state: InformedSwarmState, fresh: InformedSwarmState, sources: Sequence[int | None], rank: int
    ) -> InformedSwarmState:
        """Return the state in a changed group: one that joins is trusted, its tests believed to vary by PRIOR."""
        moved = super().carry(state, fresh, sources, rank)
        moved.variance[torch.tensor([source is None for source in sources])] = trust.PRIOR**2
        return moved

    def report(self, x: Tensor, state: InformedSwarmState, layout: Layout) -> tuple[float, ...]:
        """Return the squared length of this worker's step since the last round."""
        n = layout.parameters
        return (squared_distance(x[:n], state.anchor[:n]),)

    def exchange(
        self, x: Tensor, state: InformedSwarmState, signal: Signal, roll: Roll, comm: Comm
    ) -> InformedSwarmMessage:
        probes = self.trust in ("auto", "leave_one_out") and signal.probe is not None and comm.size > 1
        untested = probes and int(state.tests) < trust.FIRST
        doubtful = (state.effect < 0) | untested if probes else torch.zeros_like(state.standing, dtype=torch.bool)
        passing = trust.glance(roll, torch.where(doubtful, self.gate / 10, self.gate))
        included = _included(state.standing, passing, roll)
        mean, _ = comm.mean(x, self._weight(included, roll, comm.rank))
        verdict = trust.Verdict(state.effect, state.variance, state.standing, int(state.tests))
        spent, cost = float(state.spent), self._cost(state, signal, comm) if probes else 0.0
        if untested or (probes and spent <= self.budget * signal.step):
            spent += 0.0 if untested else 2 * cost
            q, loss = self._leave_one_out(x, mean, included, roll, signal, comm)
            verdict = trust.judge(verdict, q, roll.present, self.memory, self.margin)
            if trust.suspects(q).any():
                spent += cost
                if loss > self._loss(state.anchor, signal, comm):
                    passing = trust.veto(verdict.standing, passing, trust.suspects(q))
            now = _included(verdict.standing, passing, roll)
            if not torch.equal(now, included):
                mean, _ = comm.mean(x, self._weight(now, roll, comm.rank))
        return InformedSwarmMessage(
            consensus=mean,
            effect=verdict.effect,
            variance=verdict.variance,
            standing=verdict.standing,
            since=torch.where(verdict.standing == state.standing, state.since, signal.step),
            passing=passing,
            step=torch.tensor(signal.step),
            tests=torch.tensor(verdict.tests),
            spent=torch.tensor(spent, dtype=torch.float64),
            cost=torch.tensor(cost if probes else -1.0, dtype=torch.float64),
        )

    def _weight(self, included: Tensor, roll: Roll, rank: int) -> float:
        """Return a_i of this rank, up to a factor that is common to all."""
        weight = roll.weight(rank) if included[rank] else 0.0
        if self.trust != "loss" or not weight:
            return weight
        losses = roll.losses[included]
        excess = (roll.losses[rank] / losses.median() - 1.0) / self.temperature
        least = (losses.min() / losses.median() - 1.0) / self.temperature
        return weight * math.exp(-float(excess - least)) if math.isfinite(excess - least) else weight

    def _cost(self, state: InformedSwarmState, signal: Signal, comm: Comm) -> float:
        """Return the cost of one probe in local steps: of the slowest worker, measured once."""
        if float(state.cost) >= 0:
            return float(state.cost)
        return float(comm.gather(torch.tensor(signal.probe_cost, dtype=torch.float64)).max())

    def _leave_one_out(
        self, x: Tensor, mean: Tensor, included: Tensor, roll: Roll, signal: Signal, comm: Comm
    ) -> tuple[Tensor, float]:
        """Return (q [W] float64, the swarm's loss); q: what it gains by each worker, as a fraction of it."""
        assert signal.probe is not None
        judged = (comm.rank + 1) % comm.size if self.audit else comm.rank
        x = comm.sent(x)
        if self.audit:
            x = comm.permute(x, [(rank + 1) % comm.size for rank in range(comm.size)])
        total = sum(roll.weight(rank) for rank in range(comm.size) if included[rank])
        weight, q, base = roll.weight(judged), 0.0, signal.probe(mean)
        if included[judged] and 0 < weight < total:
            rest = total - weight
            q = (signal.probe((total * mean - weight * x) / rest) - base) * (rest / weight) / base
        elif weight and not included[judged]:
            more = total + weight
            q = (base - signal.probe((total * mean + weight * x) / more)) * (more / weight) / base
        rows = comm.gather(torch.tensor([q, base], dtype=torch.float64))
        if self.audit:
            rows = rows.roll(1, 0)
        return trust.checked(rows[:, 0], rows[:, 1]), float(rows[:, 1].median())

    def _loss(self, x: Tensor, signal: Signal, comm: Comm) -> float:
        """Return the probe's loss at an x common to all, the same on all ranks whatever their rounding."""
        assert signal.probe is not None
        return float(comm.gather(torch.tensor(signal.probe(x), dtype=torch.float64)).median())

    def apply(self, x: Tensor, state: InformedSwarmState, message: InformedSwarmMessage, layout: Layout) -> None:
        for block in blocks(x):
            anchor = state.anchor[block]
            found = message.consensus[block] - anchor
            u = state.velocity[block].mul_(self.inertia).add_(found)
            move = found.add_(u, alpha=self.inertia) if self.look_ahead else u
            x[block].copy_(anchor.add_(move, alpha=self.social))
        n = layout.parameters
        state.anchor[n:] = message.consensus[n:]  # buffers get no momentum
        x[n:] = message.consensus[n:]
        state.effect.copy_(message.effect)
        state.variance.copy_(message.variance)
        state.standing.copy_(message.standing)
        state.since.copy_(message.since)
        state.passing.copy_(message.passing)
        state.step.copy_(message.step)
        state.tests.copy_(message.tests)
        state.spent.copy_(message.spent)
        state.cost.copy_(message.cost)

    def consensus(self, x: Tensor, message: InformedSwarmMessage) -> Tensor:
        return message.consensus

    def distrusted(self, state: InformedSwarmState) -> tuple[Distrust, ...]:
        found: list[Distrust] = []
        for rank in range(len(state.standing)):
            lasting, passing = int(state.standing[rank]), int(state.passing[rank])
            if lasting or passing:
                since = int(state.since[rank]) if lasting else int(state.step)
                found.append(Distrust(rank, since, trust.explain(lasting or passing, float(state.effect[rank]))))
        return tuple(found)

    def result(self, x: Tensor, state: InformedSwarmState, comm: Comm) -> Tensor:
        return state.anchor.clone()


def _included(standing: Tensor, passing: Tensor, roll: Roll) -> Tensor:
    """Return whose weights count, bool [W]: the trusted; if none of them is present, all who are."""
    included = roll.present & (standing == trust.TRUSTED) & (passing == trust.TRUSTED)
    if included.any():
        return included
    if not roll.present.any():
        raise NotFinite("the weights of every worker are not finite; lower the learning rate")
    return roll.present
