"""Grows a network layer by layer, among workers that keep their examples to themselves."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from swarmstep.checkpoint.fields import field
from swarmstep.comm.group import Group
from swarmstep.comm.metered import Metered
from swarmstep.errors import CheckpointError, NotFinite, UsageError
from swarmstep.layerwise.least_squares import Admm, Ball, Limit, Ridge, Solution, exact
from swarmstep.layerwise.network import SSFN, hidden
from swarmstep.layerwise.settings import SSFNSettings
from swarmstep.runtime.startup_checks import agree
from swarmstep.seeding import generator
from swarmstep.strategies.parts.graph import Graph

SPOTLESS = 1e-30  # relative cost from which on nothing is left to lower


@dataclasses.dataclass(frozen=True)
class Layer:
    """A solved layer; 0 is the linear map of the inputs. The same on all ranks, but for the bytes.

    Attributes:
        layer: its number.
        nodes: its random nodes.
        cost: sum of the squared errors of all workers' examples.
        decibels: 10 log10(cost / sum of the squared targets).
        iterations: of ADMM, of all sizes that were tried; 0 with the Gram form.
        residual: at their end, relative.
        bytes_sent: by this worker, for this layer.
        bytes_received: by this worker.
    """

    layer: int
    nodes: int
    cost: float
    decibels: float
    iterations: int
    residual: float
    bytes_sent: int
    bytes_received: int


class _Trial(NamedTuple):
    """A layer with so many nodes: what it sees [J, n], R, O, and the cost."""

    y: Tensor
    random: Tensor
    output: Tensor
    cost: float


class Builder:
    """One worker's part in the growth of a network; all ranks call the same methods.

    Decentralised SSFN (Liang, Javid, Skoglund, Chatterjee, arXiv 2009.13982; what is theirs and what is ours:
    docs/methods/ssfn.md). Only sums over examples, or ADMM's O_m + L_m, leave a worker, never an example. Without
    a graph the Gram matrices are summed, which is exact; with one the workers find the same solution by consensus
    ADMM among neighbours. Numbers by which all decide alike (cost, residuals) are gathered from all, 8 bytes each.

    Args:
        settings: the same on all ranks.
        inputs: this worker's examples [J, ...], finite; J may differ and be 0.
        targets: their targets [J, Q], for classes one-hot.
        comm: the group.
        graph: of the group's workers (None: the Gram form).
        seed: of the random features.

    Attributes:
        layers: those that have been solved.
        examples: of all workers.
        sync_seconds: of this process, in which it exchanged matrices or waited for them.

    Raises:
        UsageError: the shapes do not go together, no worker has an example, or the graph is of another size.
        Disagreement: the ranks were given different settings or sizes.
        NotFinite: some worker's examples are not finite; on all ranks.
    """

    def __init__(
        self,
        settings: SSFNSettings,
        inputs: Tensor,
        targets: Tensor,
        comm: Group,
        graph: Graph | None = None,
        seed: int = 0,
    ) -> None:
        if inputs.ndim < 2 or targets.ndim != 2 or len(inputs) != len(targets):
            raise UsageError(
                f"rank {comm.rank}: expected inputs [J, ...] and targets [J, Q], one-hot for classes; found "
                f"{[*inputs.shape]} and {[*targets.shape]}"
            )
        if graph and graph.size != comm.size:
            raise UsageError(f"graph: expected one of {comm.size} workers, found {graph.size}")
        self.settings, self._graph, self._seed = settings, graph, seed
        self._comm = Metered(comm)
        self._y, self._targets = inputs.flatten(1).double(), targets.double()
        self.inputs, self.outputs = self._y.shape[1], targets.shape[1]
        sizes = {"inputs": self.inputs, "outputs": self.outputs, "seed": seed, "graph": graph and graph.edges}
        agree({"settings": str(settings), **{name: str(value) for name, value in sizes.items()}}, comm)
        self._norm, self.examples = self._checked()
        self.sync_seconds = 0.0
        self.layers: list[Layer] = []
        self._learned: list[Tensor] = []
        self._random: list[Tensor] = []

    def _checked(self) -> tuple[float, int]:
        """Return the sum of all squared targets, and the number of all examples."""
        finite = bool(self._y.square().sum().isfinite() and self._targets.isfinite().all())
        own = [float(self._targets.square().sum()), len(self._targets), finite]
        rows = self._comm.bare.gather(torch.tensor(own, dtype=torch.float64))
        for rank, row in enumerate(rows):
            if not row[2]:
                raise NotFinite(f"rank {rank}: inputs or targets are not finite, or too large to square; clean it")
        norm, examples, _ = rows.sum(0).tolist()
        if not norm:
            raise UsageError("expected a worker with examples and targets other than 0, found none")
        return norm, round(examples)

    @property
    def done(self) -> bool:
        """Whether there are as many layers as may be, or the last has lowered the cost too little for another."""
        if len(self.layers) < 2:
            return False
        last, now = self.layers[-2:]
        spotless = now.cost <= SPOTLESS * self._norm
        return (
            spotless or now.layer == self.settings.layers or self._gain(last.cost, now.cost) < self.settings.deeper
        )

    def add(self) -> Layer:
        """Solve the next layer, 0 first, and return what came of it. Collective."""
        with self._comm.counting() as traffic:
            solutions: list[Solution] = []
            if not self._learned:
                found = self._solved(self._y, torch.zeros(0, self.inputs), Ridge(self.settings.ridge), solutions)
            else:
                found = self._grown(solutions)
                self._random.append(found.random)
        self._y = found.y
        self._learned.append(found.output)
        layer = Layer(
            len(self.layers),
            len(found.random),
            found.cost,
            self._decibels(found.cost),
            sum(solution.iterations for solution in solutions),
            max(solution.residual for solution in solutions),
            traffic.sent,
            traffic.received,
        )
        self.layers.append(layer)
        tolerance = self.settings.tolerance
        if self._graph and 0 < tolerance < layer.residual and self._comm.rank == 0:
            warnings.warn(
                f"layer {layer.layer}: ADMM ended after its {self.settings.iterations} iterations with a residual "
                f"of {layer.residual:.1e}, above its tolerance of {tolerance:g}; raise one of them",
                stacklevel=2,
            )
        return layer

    def _grown(self, solutions: list[Solution]) -> _Trial:
        """Return a layer of growing width, as wide as was worth it."""
        y, output, layer = self._y, self._learned[-1], len(self.layers)
        ball, best = Ball(self.settings.alpha * math.sqrt(2 * self.outputs)), None
        random = self._draw(layer, y.shape[1], self.settings.width)
        for nodes in self.settings.sizes:
            trial = self._solved(hidden(y, output, random[:nodes]), random[:nodes], ball, solutions)
            gain = self._gain(best.cost, trial.cost) if best else math.inf
            if best and gain <= 0:
                return best
            best = trial
            if gain < self.settings.wider:
                break
        assert best
        return best

    def _draw(self, layer: int, columns: int, nodes: int) -> Tensor:
        """Return the first rows of a hidden layer's R, uniform in -1..1; the same on all ranks."""
        source = generator(self._seed, "ssfn", layer)
        return torch.rand(self.settings.width, columns, generator=source)[:nodes].mul(2).sub(1)

    def _solved(self, y: Tensor, random: Tensor, limit: Limit, solutions: list[Solution]) -> _Trial:
        """Return what all workers' examples make of a layer that sees `y` [J, n]."""
        gram, cross, settings = y.T @ y, self._targets.T @ y, self.settings
        if self._graph:
            admm = Admm(settings.iterations, settings.tolerance, settings.mu)
            solution = admm.solve(gram, cross, limit, self._comm, self._average)
        else:
            began = self._comm.clock()
            solution = exact(gram, cross, limit, self._comm)
            self.sync_seconds += self._comm.clock() - began
        solutions.append(solution)
        own = (self._targets - y @ solution.output.T).square().sum()
        return _Trial(y, random, solution.output, float(self._comm.gather(own).sum()))

    def _average(self, x: Tensor) -> Tensor:
        assert self._graph
        began = self._comm.clock()
        mean = self._graph.average(x, self._comm, self.settings.mixing)
        self.sync_seconds += self._comm.clock() - began
        return mean

    def _decibels(self, cost: float) -> float:
        return 10 * math.log10(max(cost / self._norm, SPOTLESS))

    def _gain(self, before: float, after: float) -> float:
        """Return by which part the cost has fallen, in dB."""
        old, new = self._decibels(before), self._decibels(after)
        return (old - new) / max(abs(old), SPOTLESS)

    def network(self) -> SSFN:
        """Return the network as it is now; every worker has its own, equal as far as the solutions are."""
        network = SSFN(self.inputs, self.outputs, [len(random) for random in self._random])
        for own, values in zip((*network.learned, *network.random), (*self._learned, *self._random), strict=True):
            own.copy_(values)
        return network

    def outputs_of_own(self) -> Tensor:
        """Return what the network says of this worker's examples, [J, Q]."""
        return self._y @ self._learned[-1].T

    def spread(self) -> float:
        """Return how far any worker's last O is from the mean of all, relative to its norm. Collective."""
        own = self._learned[-1]
        mean = self._comm.bare.mean(own)[0]
        apart = (own - mean).norm() / mean.norm().clamp_min(SPOTLESS)
        return float(self._comm.bare.gather(apart).max())

    def state_dict(self) -> dict[str, Any]:
        """Return what this worker has to remember: what it has learned; seed and examples give the rest."""
        return {"learned": [*self._learned], "layers": [dataclasses.asdict(layer) for layer in self.layers]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`, in a new builder with the same arguments, bit for bit.

        Raises:
            CheckpointError: it is of another network.
        """
        layers = [Layer(**layer) for layer in field(state, "layers")]
        for layer, output in zip(layers, field(state, "learned"), strict=True):
            if layer.layer:
                random = self._draw(layer.layer, self._y.shape[1], layer.nodes)
                self._y = hidden(self._y, self._learned[-1], random)
                self._random.append(random)
            expected, found = [self.outputs, self._y.shape[1]], [*output.shape]
            if found != expected:
                raise CheckpointError(
                    f"layer {layer.layer}: O: expected {expected}, found {found}; start a new run"
                )
            self._learned.append(output)
        self.layers = layers


def fit(
    settings: SSFNSettings,
    inputs: Tensor,
    targets: Tensor,
    comm: Group,
    graph: Graph | None = None,
    seed: int = 0,
) -> SSFN:
    """Return the network that all workers' examples make, grown until it is `Builder.done`. Collective.

    Arguments and errors as of `Builder`.
    """
    builder = Builder(settings, inputs, targets, comm, graph, seed)
    while not builder.done:
        builder.add()
    return builder.network()
