"""PSO-PS: each worker is a particle, and particle swarm optimization computes the new weights."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from swarmstep.cards import CARDS, Card
from swarmstep.comm.base import Comm
from swarmstep.errors import UsageError
from swarmstep.ownership import Own, PerWorker, Shared
from swarmstep.seeding import generator, mix
from swarmstep.signal import Layout, Roll, Signal
from swarmstep.strategies.base import Strategy, check_choice, check_range
from swarmstep.strategies.blocks import blocks
from swarmstep.strategies.neighbours import fetch, ring_leaders


class PSOPSState(NamedTuple):
    """What a particle remembers, and what all know of the swarm."""

    velocity: Own  # v_i [P]
    best: Own  # best_i [P], with its buffers
    best_losses: PerWorker  # best_loss_j [W] float64, +inf before the first round
    leader: Own  # g [P], with its buffers; the same on all ranks unless neighbours="ring"
    owner: Shared  # the worker the best g of all came from, int64; -1 before the first round


class PSOPSMessage(NamedTuple):
    """The message: what the round found."""

    leader: Tensor
    owner: Tensor
    best_losses: Tensor
    refreshed: Tensor  # bool []: this particle's personal best is where it stands
    seed: Tensor  # int64 []: of this particle's r1, r2


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

    With neighbours="ring" each particle has a g of its own, from itself and the ranks before and after it.
    Ties go to the lowest rank. r1, r2 ~ U(0, 1). Workers keep different weights after a round. Losses must be
    positive if `best_decay` is used.

    Args:
        inertia: w, 0 to 1.
        cognitive: c1, 0 to 4: the pull to the particle's own best.
        social: c2, 0 to 4: the pull to the leader.
        best: "round", g is the best of the weights gathered now; "historical", the best ever seen.
        neighbours: "all", one leader for all; "ring", j is one of i-1, i, i+1 (lbest), so that news travels a
            rank a round and particles stay different for longer.
        random: what has an r1 and an r2 of its own: "tensor" each parameter tensor, "vector" each particle,
            "weight" each element; "none" sets both to 1.
        fitness: "training" takes f_i from the training loss, "probe" from the loss of x_i on the shared probe
            batch, which all workers then know by one more gather of a number.
        best_decay: each round inflates the remembered best losses by this fraction, 0 to 1, so that one lucky
            batch does not freeze a best.
        clamp: bound on each element of the velocity, > 0, in units of the weights (None: no bound).
        constriction: multiply the new velocity by the constriction factor of Clerc and Kennedy (2002),
            2 / |2 - phi - sqrt(phi^2 - 4 phi)| with phi = c1 + c2 > 4, in place of the inertia.
        outcome: the model at the end: "best", the leader g with its buffers, or "mean" of the particles.
        when: the trigger; the default is each 16th step.

    Raises:
        UsageError: an argument is out of its range.

    Cost: one broadcast of P a round, (W-1)/W P sent by each worker, half of an all-reduce; with
    best="historical" only in rounds that change g. With neighbours="ring" two permutes at most in which only
    those who want a neighbour's weights take part: at most 4/3 P, 7/6 P as a mean if losses are random. Memory:
    v, best_i and g, 3 P.

    Source: Ye, Han, Sun, Lv, PSO-PS, IJCNN 2020, arXiv 2009.03816: particles, fitness, the alternation of SGD
    and PSO. The paper's body was not at hand: the update is textbook PSO, and the coefficients, the
    randomness for each tensor, `best="round"` and every option beyond are our decisions, not the paper's.
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
        check_choice("random", self.random, ("tensor", "vector", "weight", "none"))
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

        A particle that joins has velocity 0 and a survivor's leader as its own best, with the leader's loss. If
        the owner of the leader has left, the first survivor inherits the leader as its own best, so that it
        competes once more.

        With best="round" the leader's loss is not remembered, and a best may be better than the leader: a
        particle that joins takes the best loss of the leader's owner for it, and nobody inherits. With
        neighbours="ring" nobody knows whose leader is whose: a particle that joins takes the loss as +inf, the
        owner is the survivor with the lowest best loss, and each survivor keeps its leader, which may be the
        best of one that has left, until it hears of a better one from its new neighbours.
        """
        moved = super().carry(state, fresh, sources, rank)
        joins = [source is None for source in sources]
        if joins[rank]:
            moved.leader.copy_(state.leader)
            moved.best.copy_(state.leader)
        owner = int(state.owner)
        if owner < 0:
            return moved
        losses, everybody = moved.best_losses, self.neighbours == "all"
        if everybody:
            losses[torch.tensor(joins)] = state.best_losses[owner]
        heir = joins.index(False) if everybody else int(losses.argmin())
        if owner in sources:
            heir = sources.index(owner)
        elif everybody and self.best == "historical":
            losses[heir] = state.best_losses[owner]
            if rank == heir:
                moved.best.copy_(state.leader)
        moved.owner.fill_(heir)
        return moved

    def exchange(self, x: Tensor, state: PSOPSState, signal: Signal, roll: Roll, comm: Comm) -> PSOPSMessage:
        losses = self._fitness(x, signal, roll, comm)
        remembered = state.best_losses * (1.0 + self.best_decay)
        refreshed = losses < remembered
        best_losses = torch.where(refreshed, losses, remembered)
        mine = bool(refreshed[comm.rank])
        scores = losses if self.best == "round" else best_losses
        brought = x if mine or self.best == "round" else state.best
        owner = int(scores.argmin())
        leader = state.leader
        if self.neighbours == "ring":
            leader = self._ring_leader(brought, state, scores, refreshed, comm)
        elif self.best == "round" or owner != int(state.owner) or refreshed[owner]:
            leader = comm.broadcast(brought, owner)
        seed = mix(signal.seed, signal.step, comm.rank, "pso")
        return PSOPSMessage(leader, torch.tensor(owner), best_losses, torch.tensor(mine), torch.tensor(seed))

    def _fitness(self, x: Tensor, signal: Signal, roll: Roll, comm: Comm) -> Tensor:
        """Return f [W] float64, +inf for workers that do not take part."""
        if self.fitness == "training":
            return roll.losses
        assert signal.probe is not None
        mine = signal.probe(x) if roll.present[comm.rank] else math.inf
        losses = comm.gather(torch.tensor(mine, dtype=torch.float64))
        return losses.where(losses.isfinite(), math.inf)

    def _ring_leader(
        self, brought: Tensor, state: PSOPSState, scores: Tensor, refreshed: Tensor, comm: Comm
    ) -> Tensor:
        """Return the best among what this rank and its neighbours bring; only what is new travels.

        With historical bests a rank's leader changes only to one that has just refreshed its best.
        """
        leaders = ring_leaders(scores)
        new = refreshed | (self.best == "round")
        wanted = {rank for rank, leader in enumerate(leaders) if leader != rank and new[leader]}
        found = fetch(brought, leaders, wanted, comm)
        if found is not None:
            return found
        return brought.clone() if leaders[comm.rank] == comm.rank else state.leader

    def apply(self, x: Tensor, state: PSOPSState, message: PSOPSMessage, layout: Layout) -> None:
        state.best_losses.copy_(message.best_losses)
        state.owner.copy_(message.owner)
        refreshed = bool(message.refreshed)
        factor, inertia = self._constriction(), 1.0 if self.constriction else self.inertia
        for block, r1, r2 in self._random(x, layout.sizes, int(message.seed)):
            here, v = x[block], state.velocity[block]
            leader = state.leader[block].copy_(message.leader[block])
            v.mul_(inertia)
            if refreshed:  # it stands at its best
                state.best[block].copy_(here)
            else:
                _pull(v, state.best[block] - here, r1, self.cognitive)
            _pull(v, leader - here, r2, self.social)
            if factor != 1.0:
                v.mul_(factor)
            if self.clamp is not None:
                v.clamp_(-self.clamp, self.clamp)
            here.add_(v)

    def _random(
        self, x: Tensor, sizes: tuple[int, ...], seed: int
    ) -> Iterator[tuple[slice, Tensor | float, Tensor | float]]:
        """Yield the pieces of x, each with its r1 and r2."""
        if self.random == "weight":
            source = generator(seed, device=x.device)
            r = torch.rand((2, x.numel()), generator=source, dtype=x.dtype, device=x.device)
            for block in blocks(x):
                yield block, r[0, block], r[1, block]
        elif self.random == "tensor":
            r = torch.rand((2, len(sizes)), generator=generator(seed), dtype=x.dtype)
            start = 0
            for size, r1, r2 in zip(sizes, *r.tolist(), strict=True):
                for block in blocks(x[start : start + size]):
                    yield slice(start + block.start, start + block.stop), r1, r2
                start += size
        else:
            ones = torch.ones(2, 1, dtype=x.dtype)
            r = ones if self.random == "none" else torch.rand((2, 1), generator=generator(seed), dtype=x.dtype)
            for block in blocks(x):
                yield block, float(r[0]), float(r[1])

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


def _pull(v: Tensor, gap: Tensor, r: Tensor | float, strength: float) -> None:
    """Add strength * r * gap to v; may change gap."""
    if isinstance(r, Tensor):
        v.add_(gap.mul_(r), alpha=strength)
    else:
        v.add_(gap, alpha=strength * r)
