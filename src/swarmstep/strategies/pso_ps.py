"""PSO-PS: each worker is a particle, and particle swarm optimization computes the new weights."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from swarmstep.cards import CARDS, Card
from swarmstep.comm.base import Comm
from swarmstep.errors import UsageError
from swarmstep.ownership import Own, PerWorker, Shared
from swarmstep.seeding import mix
from swarmstep.signal import Layout, Roll, Signal
from swarmstep.strategies.base import Strategy, check_choice, check_range
from swarmstep.strategies.parts.neighbours import fetch, ring_leaders
from swarmstep.strategies.parts.random_factors import FACTORS, Factor, random_factors


class PSOPSState(NamedTuple):
    """What a particle remembers, and what every particle knows of the swarm."""

    velocity: Own  # v_i [P]
    best: Own  # best_i [P], with its buffers
    best_losses: PerWorker  # best_loss_j [W] float64, +inf before the first round
    leader: Own  # g [P], with its buffers; the same on all ranks unless neighbours="ring"
    owner: Shared  # int64 []: the worker that the best g of all came from; -1 before the first round


class PSOPSMessage(NamedTuple):
    """The new leader and best losses, and how this particle moves."""

    leader: Tensor
    owner: Tensor
    best_losses: Tensor
    refreshed: Tensor  # bool []: this particle is at its personal best
    seed: Tensor  # int64 []: of this particle's r1 and r2


@dataclasses.dataclass(frozen=True)
class PSOPS(Strategy[PSOPSState, PSOPSMessage]):
    """Move every particle by particle swarm optimization (PSO-PS).

    ::

        f_i = mean training loss since the last round
        if f_i < best_loss_i:  best_i = x_i ; best_loss_i = f_i
        g   = x_j of the lowest f_j                    (best="round")
              best_j of the lowest best_loss_j         (best="historical")
        v_i = w v_i + c1 r1 (best_i - x_i) + c2 r2 (g - x_i)
        x_i = x_i + v_i

    With neighbours="ring" each particle has a g of its own, the best of itself and the ranks before and after it.
    Ties go to the lowest rank. r1, r2 ~ U(0, 1). Workers keep different weights.

    Args:
        inertia: w, 0 to 1.
        cognitive: c1, 0 to 4: the pull to the particle's own best.
        social: c2, 0 to 4: the pull to the leader.
        best: "round", g is the best of this round's weights; "historical", the best ever seen.
        neighbours: "all", one leader for all; "ring", j is one of i-1, i, i+1 (lbest), so that a good position
            travels one rank a round and particles stay different for longer.
        random: what has an r1 and r2 of its own: "tensor", each tensor; "vector", each particle; "weight", each
            element. "none" sets both to 1.
        fitness: "training", f_i is the training loss; "probe", the loss of x_i on the shared probe batch, which
            costs a gather of one number.
        best_decay: 0 to 1; in each round all remembered best losses rise by this fraction of the distance from the
            lowest of them to the median of the f_i, so that one lucky batch does not fix a best for good.
        clamp: bound on each element of the velocity, > 0, in units of the weights; None means no bound.
        constriction: multiply the new velocity by the constriction factor of Clerc and Kennedy (2002),
            2 / |2 - phi - sqrt(phi^2 - 4 phi)| with phi = c1 + c2 > 4, in place of the inertia.
        outcome: the model at the end: "best", the leader g with its buffers; "mean", the mean of the particles.
        when: the trigger; by default every 16th step.

    Raises:
        UsageError: an argument is out of its range.

    Cost: one broadcast of P a round, (W-1)/W P sent by each worker, half of an all-reduce; with best="historical"
    only in rounds that change g. With neighbours="ring" at most two permutes, in which only particles that need a
    neighbour's weights receive: at most 4/3 P, and 7/6 P on average if losses are random. Memory: v, best_i and g,
    3 P.

    Source: Ye, Han, Sun, Lv, PSO-PS, IJCNN 2020, arXiv 2009.03816: particles, fitness, and SGD and PSO in turn.
    The paper's body was not at hand: the update is textbook PSO, and the coefficients, the randomness for each
    tensor, `best="round"` and all further options are our decisions, not the paper's.
    """

    card: ClassVar[Card] = CARDS["pso-ps"]

    inertia: float = 0.3
    cognitive: float = 0.08
    social: float = 0.5
    best: str = "round"
    neighbours: str = "all"
    random: str = "tensor"
    fitness: str = "training"
    best_decay: float = 0.0
    clamp: float | None = None
    constriction: bool = False
    outcome: str = "best"

    def __post_init__(self) -> None:
        check_range("inertia", self.inertia, 0.0, 1.0)
        check_range("cognitive", self.cognitive, 0.0, 4.0)
        check_range("social", self.social, 0.0, 4.0)
        check_range("best_decay", self.best_decay, 0.0, 1.0)
        check_choice("best", self.best, ("round", "historical"))
        check_choice("neighbours", self.neighbours, ("all", "ring"))
        check_choice("random", self.random, FACTORS)
        check_choice("fitness", self.fitness, ("training", "probe"))
        check_choice("outcome", self.outcome, ("best", "mean"))
        if self.clamp is not None and not self.clamp > 0:
            raise UsageError(f"clamp: expected a number > 0, found {self.clamp!r}")
        if self.constriction and not self.cognitive + self.social > 4:
            raise UsageError(
                f"constriction: expected cognitive + social > 4, found {self.cognitive + self.social:g}"
            )

    @property
    def buffers(self) -> tuple[str, ...]:
        return ("local", "first")

    @property
    def common(self) -> str:
        return "consensus" if self.neighbours == "all" else "none"

    @property
    def needs_probe(self) -> bool:
        return self.fitness == "probe"

    @property
    def needs_loss(self) -> bool:
        return self.fitness == "training"

    def init(self, x: Tensor, layout: Layout, comm: Comm) -> PSOPSState:
        return PSOPSState(
            velocity=torch.zeros_like(x),
            best=x.clone(),
            best_losses=torch.full((comm.size,), math.inf, dtype=torch.float64),
            leader=x.clone(),
            owner=torch.tensor(-1),
        )

    def carry(self, state: PSOPSState, fresh: PSOPSState, sources: Sequence[int | None], rank: int) -> PSOPSState:
        """Return the state in a changed group.

        A newcomer has velocity 0, and a survivor's leader as its own best, with the leader's loss. If the owner of
        the leader has left, the first survivor inherits the leader as its own best, so that the leader still
        competes.

        With best="round" the leader's loss is not remembered, and some best may be better than the leader: a
        newcomer then uses the best loss of the leader's owner, and nobody inherits. With neighbours="ring" no rank
        knows whose leader is whose: a newcomer's loss is then +inf, the owner is the survivor with the lowest best
        loss, and each survivor keeps its leader, which may be the best of a worker that has left, until its new
        neighbours have a better one.
        """
        moved = super().carry(state, fresh, sources, rank)
        newcomers = [source is None for source in sources]
        if newcomers[rank]:
            moved.leader.copy_(state.leader)
            moved.best.copy_(state.leader)
        owner = int(state.owner)
        if owner < 0:
            return moved
        losses, one_leader = moved.best_losses, self.neighbours == "all"
        if one_leader:
            losses[torch.tensor(newcomers)] = state.best_losses[owner]
        heir = newcomers.index(False) if one_leader else int(losses.argmin())
        if owner in sources:
            heir = sources.index(owner)
        elif one_leader and self.best == "historical":
            losses[heir] = state.best_losses[owner]
            if rank == heir:
                moved.best.copy_(state.leader)
        moved.owner.fill_(heir)
        return moved

    def exchange(self, x: Tensor, state: PSOPSState, signal: Signal, roll: Roll, comm: Comm) -> PSOPSMessage:
        losses = self._fitness(x, signal, roll, comm)
        remembered = state.best_losses + self._rise(losses, state.best_losses)
        refreshed = losses < remembered
        best_losses = torch.where(refreshed, losses, remembered)
        scores = losses if self.best == "round" else best_losses
        candidate = x if refreshed[comm.rank] or self.best == "round" else state.best
        owner = int(scores.argmin())
        leader = state.leader
        if self.neighbours == "ring":
            leader = self._ring_leader(candidate, state, scores, refreshed, comm)
        elif self.best == "round" or owner != int(state.owner) or refreshed[owner]:
            leader = comm.broadcast(candidate, owner)
        seed = mix(signal.seed, signal.step, comm.rank, "pso")
        return PSOPSMessage(
            leader, torch.tensor(owner), best_losses, refreshed[comm.rank].clone(), torch.tensor(seed)
        )

    def _rise(self, losses: Tensor, best_losses: Tensor) -> float:
        """Return by how much the remembered best losses rise: all alike, so that their order stays."""
        there = losses[losses.isfinite()]
        gap = float(there.median() - best_losses.min()) if len(there) else 0.0
        return self.best_decay * gap if gap > 0 else 0.0

    def _fitness(self, x: Tensor, signal: Signal, roll: Roll, comm: Comm) -> Tensor:
        """Return f [W] float64, +inf for workers that do not take part."""
        if self.fitness == "training":
            return roll.losses
        assert signal.probe is not None
        own = float(signal.probe(x).mean()) if roll.present[comm.rank] else math.inf
        losses = comm.gather(torch.tensor(own, dtype=torch.float64))
        return losses.where(losses.isfinite(), math.inf)

    def _ring_leader(
        self, candidate: Tensor, state: PSOPSState, scores: Tensor, refreshed: Tensor, comm: Comm
    ) -> Tensor:
        """Return the best candidate of this rank and its neighbours; only candidates that are new travel.

        With historical bests a rank's leader changes only to one that has just refreshed its best.
        """
        leaders = ring_leaders(scores)
        new = refreshed | (self.best == "round")
        receivers = {rank for rank, leader in enumerate(leaders) if leader != rank and new[leader]}
        received = fetch(candidate, leaders, receivers, comm)
        if received is not None:
            return received
        return candidate.clone() if leaders[comm.rank] == comm.rank else state.leader

    def apply(self, x: Tensor, state: PSOPSState, message: PSOPSMessage, layout: Layout) -> None:
        state.best_losses.copy_(message.best_losses)
        state.owner.copy_(message.owner)
        refreshed = bool(message.refreshed)
        factor, inertia = self._constriction(), 1.0 if self.constriction else self.inertia
        for block, r1, r2 in random_factors(self.random, x, layout.sizes, int(message.seed)):
            position, v = x[block], state.velocity[block]
            leader = state.leader[block].copy_(message.leader[block])
            v.mul_(inertia)
            if refreshed:  # it is at its best, which pulls no further
                state.best[block].copy_(position)
            else:
                _pull(v, state.best[block] - position, r1, self.cognitive)
            _pull(v, leader - position, r2, self.social)
            if factor != 1.0:
                v.mul_(factor)
            if self.clamp is not None:
                v.clamp_(-self.clamp, self.clamp)
            position.add_(v)

    def _constriction(self) -> float:
        if not self.constriction:
            return 1.0
        phi = self.cognitive + self.social
        return 2.0 / abs(2.0 - phi - math.sqrt(phi * phi - 4.0 * phi))

    def consensus(self, x: Tensor, message: PSOPSMessage) -> Tensor:
        return message.leader

    def result(self, x: Tensor, state: PSOPSState, comm: Comm) -> Tensor:
        if self.outcome == "mean" or int(state.owner) < 0:
            return comm.mean(x)[0]
        if self.neighbours == "ring":
            return comm.broadcast(state.leader, int(state.owner))
        return state.leader.clone()


def _pull(v: Tensor, gap: Tensor, r: Factor, strength: float) -> None:
    """Add strength * r * gap to v; may change gap."""
    if isinstance(r, Tensor):
        v.add_(gap.mul_(r), alpha=strength)
    else:
        v.add_(gap, alpha=strength * r)
