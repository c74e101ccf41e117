"""The informed swarm: every particle is drawn to all others, as far as the swarm trusts them."""

from __future__ import annotations

import dataclasses
import functools
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
from swarmstep.strategies.base import Strategy, check_choice, check_range
from swarmstep.strategies.parts import trust
from swarmstep.strategies.parts.blocks import squared_distance
from swarmstep.strategies.parts.leave_one_out import leave_one_out, slowest, suspects
from swarmstep.strategies.parts.outer_step import KINDS, OuterStep


class InformedSwarmState(NamedTuple):
    """What the swarm shares: position, velocity, and whom it trusts."""

    anchor: Shared  # x after the last round [P]
    velocity: Shared  # u [P]
    radius: Shared  # float64 []: r, of a measured reach
    effect: PerWorker  # e [W] float64: what the swarm gains by each worker, in typical gains
    variance: PerWorker  # [W] float64: of the outcome of one test
    groups: PerWorker  # h [W, trust.GROUPS] float64: how the probe's examples differ about each worker
    lowers: PerWorker  # [W] float64: by what fraction leaving the worker out lowers the probe's loss
    standing: PerWorker  # [W] int64: the verdict of the tests, an index of trust.REASONS
    since: PerWorker  # [W] int64: the step of the present standing
    passing: PerWorker  # [W] int64: why the last round alone left a worker out, an index of trust.REASONS
    step: Shared  # int64 []: of the last round
    tests: Shared  # int64 []: t
    spent: Shared  # float64 []: what the probes after the first tests have cost, in local steps
    cost: Shared  # float64 []: of one probe, in local steps; -1 before the first round
    usual: Shared  # float64 []: a typical outcome of the last test without a step back; inf before the third


class InformedSwarmMessage(NamedTuple):
    """The consensus, the step's share and then, in the order of the state, all that the round changes."""

    consensus: Tensor  # c [P]
    share: Tensor  # t, float64 []
    radius: Tensor
    effect: Tensor
    variance: Tensor
    groups: Tensor
    lowers: Tensor
    standing: Tensor
    since: Tensor
    passing: Tensor
    step: Tensor
    tests: Tensor
    spent: Tensor
    cost: Tensor
    usual: Tensor


@final
@dataclasses.dataclass(frozen=True)
class InformedSwarm(Strategy[InformedSwarmState, InformedSwarmMessage]):
    """Move the whole swarm by the mean step of all trusted workers, with momentum.

    ::

        c = sum_i a_i x_i / sum_i a_i         consensus; a_i >= 0: the swarm's trust times the worker's weight
        d = c - x                             the round's step; x: the common weights before it
        v = w u + d                           the swarm's velocity
        x' = x + s (d + w v)                  with look-ahead
             x + s v                          without
        x = c + t (x' - c) ; u = t v          t <= 1: the reach

    With reach="measured" t is the largest with which the swarm goes no further than its workers have just gone
    themselves (`outer_step.py`). How far is too far differs from task to task and from phase to phase; the
    workers' own steps tell. With reach="fixed" t is 1. Then, with uniform trust, w = 0 and s = 1 are local SGD;
    w = 0.9 and s = 0.7 with look-ahead are DiLoCo; s = 1 without look-ahead is block momentum (BMUF).

    With trust="leave_one_out" each worker measures, on a probe batch that is the same for all, what the swarm
    would lose without it or, if it is distrusted, gain with it (`leave_one_out.py`). A sequential test over the
    rounds (`trust.py`) decides who is distrusted. The first three rounds test; later tests are spaced so that they
    cost the fraction `budget` of the local steps. At least half of the workers stay trusted. A worker judges
    itself, which protects from faulty workers but not from lying ones, unless `audit` is set.

    Whatever the trust, a worker whose weights are not finite has weight 0 in that round and takes the swarm's
    weights, and a step longer than `clip` medians counts shortened to that. With a probe one longer than `gate`
    medians is left out; without one nothing tells whether it is wild or does most of the work.

    Args:
        trust: "uniform", a_i is the worker's weight; "loss", it is multiplied by exp(-f_i / temperature) of the
            training losses f_i, 0 for one whose loss is not finite; "leave_one_out", by 0 or 1; "auto",
            "leave_one_out" if a probe is given, else "uniform".
        social: s, above 0 and at most 2: the pull to the consensus.
        inertia: w, 0 to 0.9999.
        reach: "measured" or "fixed", how far beyond the consensus the swarm goes.
        look_ahead: as in Nesterov's momentum.
        temperature: of trust="loss", in units of the loss, above 0.
        margin: k, 0 to 100: a worker loses trust when its effect is k standard errors below 0.
        memory: beta, 0 to 0.9999: of the running mean of the effects.
        gate: the longest step allowed where there is a probe, in medians, above 1.
        clip: the longest step that counts in full, in medians, above 1.
        budget: what probing may cost, as a fraction of the local steps, above 0 and at most 1.
        audit: the next rank judges each worker: one more vector of P in a round with a test.
        when: the trigger; by default every 16th step.

    Raises:
        UsageError: an argument is out of its range.

    Cost: one all-reduce of P a round, 2 (W-1)/W P sent by each worker; a second one in a round that changes a
    standing. A test costs two probes and a gather of 19 numbers. Memory: x and u, 2 P.

    Source: Mendes, Kennedy, Neves, The Fully Informed Particle Swarm, IEEE Transactions on Evolutionary
    Computation 8(3), 2004; the round's step as velocity, the measured reach, leave-one-out trust and the
    defaults are ours.
    """

    card: ClassVar[Card] = CARDS["swarm"]
    contains_not_finite: ClassVar[bool] = True

    trust: str = "auto"
    social: float = 0.7
    inertia: float = 0.7
    reach: str = "measured"
    look_ahead: bool = True
    temperature: float = 0.1
    margin: float = 4.0
    memory: float = 0.9
    gate: float = 20.0
    clip: float = 10.0
    budget: float = 0.04
    audit: bool = False

    def __post_init__(self) -> None:
        check_choice("trust", self.trust, ("auto", "uniform", "loss", "leave_one_out"))
        check_choice("reach", self.reach, KINDS)
        check_range("inertia", self.inertia, 0.0, 0.9999)
        check_range("memory", self.memory, 0.0, 0.9999)
        check_range("margin", self.margin, 0.0, 100.0)
        check_range("social", self.social, 1e-9, 2.0)
        check_range("temperature", self.temperature, 1e-9, 1e9)
        check_range("budget", self.budget, 1e-9, 1.0)
        for name, medians in (("gate", self.gate), ("clip", self.clip)):
            if not medians > 1:
                raise UsageError(f"{name}: expected a number above 1, found {medians!r}")

    @property
    def needs_probe(self) -> bool:
        return self.trust == "leave_one_out"

    @property
    def needs_loss(self) -> bool:
        return self.trust == "loss"

    @property
    def common(self) -> str:
        return "weights"

    def init(self, x: Tensor, layout: Layout, comm: Comm) -> InformedSwarmState:
        each = torch.zeros(comm.size, dtype=torch.float64)
        whole = torch.zeros(comm.size, dtype=torch.int64)
        return InformedSwarmState(
            anchor=x.clone(),
            velocity=torch.zeros_like(x),
            radius=torch.tensor(1.0, dtype=torch.float64),
            effect=each.clone(),
            variance=each.clone(),
            groups=each.new_zeros(comm.size, trust.GROUPS),
            lowers=each.clone(),
            standing=whole.clone(),
            since=whole.clone(),
            passing=whole.clone(),
            step=torch.tensor(0),
            tests=torch.tensor(0),
            spent=torch.tensor(0.0, dtype=torch.float64),
            cost=torch.tensor(-1.0, dtype=torch.float64),
            usual=torch.tensor(math.inf, dtype=torch.float64),
        )

    def carry(
        self, state: InformedSwarmState, fresh: InformedSwarmState, sources: Sequence[int | None], rank: int
    ) -> InformedSwarmState:
        """Return the state in a changed group: newcomers are trusted, with the prior variance of a test."""
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
        probe = signal.probe if self.trust in ("auto", "leave_one_out") and comm.size > 1 else None
        first = probe is not None and int(state.tests) < trust.FIRST  # one of the first tests
        passing = trust.glance(roll, self.gate if probe else math.inf)
        x = _shortened(x, state.anchor, self.clip / max(1.0, float(trust.stretch(roll)[comm.rank])), signal.layout)
        included = _included(state.standing, passing, roll)
        mean, _ = comm.mean(x, self._weight(included, roll, comm.rank))
        verdict = trust.Verdict(
            state.effect, state.variance, state.groups, state.lowers, state.standing, int(state.tests)
        )
        spent, cost, usual = float(state.spent), float(state.cost), float(state.usual)
        if probe and cost < 0:  # not known yet
            cost = slowest(signal.probe_cost, comm)
        if probe and (first or spent <= self.budget * signal.step):
            measured = leave_one_out(x, mean, included, roll, probe, comm, audit=self.audit)
            verdict, q = trust.judge(verdict, measured, roll.present, self.memory, self.margin), measured.q
            suspected, probes = suspects(measured, usual, self.margin, state.anchor, probe, comm)
            spent += 0.0 if first else (2 + probes) * cost
            passing = trust.veto(verdict.standing, passing, suspected)
            if verdict.tests >= trust.FIRST and not (suspected.any() or q.isnan().any()):
                usual = trust.typical(q)
            still = _included(verdict.standing, passing, roll)
            if not torch.equal(still, included):
                included = still
                mean, _ = comm.mean(x, self._weight(included, roll, comm.rank))
        weight = functools.partial(self._weight, included, roll)
        reach = self._step.reach(self.reach, state, mean, weight, roll, signal)
        return InformedSwarmMessage(
            consensus=mean,
            share=torch.tensor(reach.share, dtype=torch.float64),
            radius=torch.tensor(reach.radius, dtype=torch.float64),
            effect=verdict.effect,
            variance=verdict.variance,
            groups=verdict.groups,
            lowers=verdict.lowers,
            standing=verdict.standing,
            since=torch.where(verdict.standing == state.standing, state.since, signal.step),
            passing=passing,
            step=torch.tensor(signal.step),
            tests=torch.tensor(verdict.tests),
            spent=torch.tensor(spent, dtype=torch.float64),
            cost=torch.tensor(cost, dtype=torch.float64),
            usual=torch.tensor(usual, dtype=torch.float64),
        )

    @property
    def _step(self) -> OuterStep:
        return OuterStep(self.social, self.inertia, self.look_ahead)

    def _weight(self, included: Tensor, roll: Roll, rank: int) -> float:
        """Return a_i of this rank, up to a factor that is common to all."""
        weight = roll.weight(rank) if included[rank] else 0.0
        if self.trust != "loss" or not weight:
            return weight
        loss, least = float(roll.losses[rank]), float(roll.losses[included].min())
        return weight * math.exp((least - loss) / self.temperature) if math.isfinite(least) else weight

    def apply(self, x: Tensor, state: InformedSwarmState, message: InformedSwarmMessage, layout: Layout) -> None:
        self._step.apply(x, state, message.consensus, message.share, layout)
        _, _, *fields = state
        for field, value in zip(fields, message[2:], strict=True):
            field.copy_(value)

    def consensus(self, x: Tensor, message: InformedSwarmMessage) -> Tensor:
        return message.consensus

    def distrusted(self, state: InformedSwarmState) -> tuple[Distrust, ...]:
        distrusted: list[Distrust] = []
        for rank in range(len(state.standing)):
            lasting, passing = int(state.standing[rank]), int(state.passing[rank])
            if lasting or passing:
                since = int(state.since[rank]) if lasting else int(state.step)
                why = trust.explain(lasting or passing, float(state.lowers[rank]))
                distrusted.append(Distrust(rank, since, why))
        return tuple(distrusted)

    def result(self, x: Tensor, state: InformedSwarmState, comm: Comm) -> Tensor:
        return state.anchor.clone()


def _shortened(x: Tensor, anchor: Tensor, share: float, layout: Layout) -> Tensor:
    """Return x with `share` of its step from the anchor, where that is below 1; buffers stay."""
    n = layout.parameters
    if share >= 1:
        return x
    return torch.cat([anchor[:n].lerp(x[:n], share), x[n:]])


def _included(standing: Tensor, passing: Tensor, roll: Roll) -> Tensor:
    """Return who is in the mean, bool [W]: the trusted; if none of them takes part, all who do."""
    counted = torch.tensor([roll.weight(rank) > 0 for rank in range(len(standing))])
    included = counted & (standing == trust.TRUSTED) & (passing == trust.TRUSTED)
    if included.any():
        return included
    if not roll.present.any():
        raise NotFinite("the weights of every worker are not finite; lower the learning rate")
    return roll.present
