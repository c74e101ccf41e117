"""A chain of steps over workers: every worker sweeps over its own part at once, until nothing changes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from swarmstep.comm.base import Comm
from swarmstep.errors import Disagreement, UsageError

Step = Callable[[Tensor, Any], Tensor]


def sweep(
    step: Step,
    start: Tensor,
    inputs: Tensor | Sequence[Any],
    comm: Comm,
    *,
    segments: int = 1,
    tolerance: float = 0.0,
    most: int | None = None,
) -> Swept:
    """Return the states of a chain h_t = step(h_{t-1}, x_t), cut over the workers. Collective.

    The L steps of each worker are cut into `segments` of equal length. A sweep goes through all segments of all
    workers at once, each from its inlet, the state in which the segment before it ended in the sweep before::

        within a segment    h_t = step(h_{t-1}, x_t), one after the other         Gauss-Seidel
        between segments    inlet_{k+1} = the last state of segment k             Jacobi

    After k sweeps the first k segments are exact, whatever the start. So the result is exact after as many sweeps
    as there are segments. It ends sooner when no inlet of any worker has changed by more than `tolerance`.

    Args:
        step: takes a state [n, ...] and an input, and returns the next state, of the same shape and dtype. Each
            of the n rows must depend on its own row only. n is B times `segments`. Any module may be in it.
        start: on rank 0 the state before the first step, floating point [B, ...]. On the other ranks, of the
            same shape, a guess of the state before their first step; it changes the number of sweeps only.
        inputs: of this worker's steps, in their order: a tensor [L, B, ...], or with one segment any sequence,
            such as layers (`step=lambda h, layer: layer(h)`). L may differ between the workers.
        comm: the group; rank r has the r-th part of the chain.
        segments: of each worker, a divisor of L, the same on all ranks. 1: only the workers are parallel
            (Jacobi-GS); L: all steps are (Jacobi). One worker that calls it for one part after another sweeps by
            GS-Jacobi.
        tolerance: at least 0. The error of what is returned is of this size only where the steps do not magnify
            differences; 0: exact, if the arithmetic of a row does not depend on the number of rows.
        most: end after this many sweeps, at least 1, whatever has changed (None: no limit).

    Cost: a sweep sends one state [B, ...] to the next rank, and one float64 to all. With gradients enabled the
    last one is computed a second time, to make the graph.

    Raises:
        UsageError: an argument is out of its range, or `step` changes shape or dtype.
        Disagreement: the ranks have other segments, tolerances, limits or shapes.

    Source: Song, Meng, Liao, Ermon, ICML 2021 (arXiv 2002.03629): feed-forward computation by Jacobi and
    Gauss-Seidel iterations and hybrids of both. Ours: the cut over workers, the guesses, the vote on when to stop.
    """
    columns = _columns(inputs, segments)
    limit = _agreed_limit(start, segments, tolerance, most, comm)
    before, rows = [(rank - 1) % comm.size for rank in range(comm.size)], len(start)
    inlets = torch.cat([start.detach()] * segments)
    states, sweeps, settled = list[Tensor](), 0, False
    with torch.no_grad():
        while sweeps < limit and not settled:
            states = _run(step, inlets, columns)
            last = states[-1]
            received = comm.permute(last[-rows:].contiguous(), before)
            moved = torch.cat([start if comm.rank == 0 else received, last[:-rows]])
            sweeps += 1
            settled = _settled(moved, inlets, tolerance, comm)
            if sweeps < limit and not settled:
                inlets = moved
    if torch.is_grad_enabled():
        states = _run(step, inlets.requires_grad_(), columns)
    in_order = tuple(state for one in zip(*(s.chunk(segments) for s in states), strict=True) for state in one)
    return Swept(in_order, sweeps, settled, start, inlets, states[-1], limit, tolerance, comm)


@dataclass(frozen=True, eq=False)
class Swept:
    """What `sweep` returns.

    Args:
        states: after each of this worker's L steps, [B, ...] each; with a graph if gradients are enabled.
        sweeps: how many it took, the same on all ranks.
        settled: whether no inlet changed by more than the tolerance in the last sweep.
        start: as given.
        inlets: [segments * B, ...], from which the segments began.
        outlets: [segments * B, ...], in which they ended.
        limit: on the number of sweeps.
        tolerance: as given.
        comm: as given.
    """

    states: tuple[Tensor, ...]
    sweeps: int
    settled: bool
    start: Tensor
    inlets: Tensor
    outlets: Tensor
    limit: int
    tolerance: float
    comm: Comm

    def backward(self, loss: Tensor | None) -> int:
        """Add the gradient of the sum of all workers' losses to `.grad`, by sweeps in reverse. Collective.

        With J_k the derivative of segment k from inlet to outlet::

            g_k = d loss / d inlet_k + J_k^T g_{k+1},        all k at once, g = 0 behind the last segment

        Each sweep is a backward pass through this worker's part. It ends as `sweep` does, with the same tolerance
        and limit. Afterwards each parameter has what this worker's steps contribute: where all workers have the
        same weights, sum over them (`comm.mean(p.grad)[0] * comm.size`). On rank 0 it goes on through `start`.

        Args:
            loss: this worker's part, a scalar made from `states`; None if it has none.

        Returns:
            The number of sweeps, the same on all ranks.

        Raises:
            UsageError: `sweep` was called without gradients, or `loss` is no scalar.
        """
        if not self.inlets.requires_grad:
            raise UsageError("backward: the sweep was made without gradients; call it outside of torch.no_grad")
        if loss is not None and loss.numel() != 1:
            raise UsageError(f"backward: expected a loss of one number, found shape {tuple(loss.shape)}")
        comm, rows = self.comm, len(self.start)
        behind = [(rank + 1) % comm.size for rank in range(comm.size)]
        ends = [self.outlets] if loss is None or not loss.requires_grad else [self.outlets, loss]
        gradient, sweeps, settled = torch.zeros_like(self.outlets), 0, False
        while sweeps < self.limit and not settled:
            given = [gradient, None][: len(ends)]
            (found,) = torch.autograd.grad(
                ends, [self.inlets], given, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            received = comm.permute(found[:rows].contiguous(), behind)
            last = torch.zeros_like(received) if comm.rank == comm.size - 1 else received
            moved = torch.cat([found[rows:], last])
            sweeps += 1
            settled = _settled(moved, gradient, self.tolerance, comm)
            if sweeps < self.limit and not settled:
                gradient = moved
        torch.autograd.backward(ends, [gradient, None][: len(ends)])
        if comm.rank == 0 and self.start.requires_grad and self.inlets.grad is not None:
            self.start.backward(self.inlets.grad[:rows])
        return sweeps


def _columns(inputs: Tensor | Sequence[Any], segments: int) -> Sequence[Any]:
    """Return for each place within a segment the inputs of all segments there, [segments * B, ...]."""
    length = len(inputs)
    if not 1 <= segments <= length or length % segments:
        raise UsageError(f"sweep: segments must divide the {length} steps of this worker, found {segments}")
    if isinstance(inputs, Tensor):
        if inputs.ndim < 2:
            raise UsageError(f"sweep: inputs must be [L, B, ...], found shape {tuple(inputs.shape)}")
        return inputs.unflatten(0, (segments, -1)).transpose(0, 1).flatten(1, 2).unbind()
    if segments > 1:
        raise UsageError("sweep: several segments need inputs that are one tensor [L, B, ...]")
    return inputs


def _agreed_limit(start: Tensor, segments: int, tolerance: float, most: int | None, comm: Comm) -> int:
    """Return the limit on the number of sweeps; all ranks must say the same."""
    if not start.is_floating_point() or start.ndim < 1 or not start.numel():
        raise UsageError(f"sweep: start must be floating point [B, ...], found {start.dtype} {tuple(start.shape)}")
    if not 0.0 <= tolerance < math.inf:
        raise UsageError(f"sweep: tolerance must be at least 0 and finite, found {tolerance}")
    if most is not None and most < 1:
        raise UsageError(f"sweep: most must be at least 1, found {most}")
    limit = min(most or math.inf, segments * comm.size)
    own = {"segments": segments, "tolerance": tolerance, "most": limit, "rows of start": len(start)}
    own["elements of start"] = start.numel()
    rows = comm.gather(torch.tensor([*own.values()], dtype=torch.float64))
    for rank, row in enumerate(rows.tolist()):
        for name, first, found in zip(own, rows[0].tolist(), row, strict=True):
            if found != first:
                raise Disagreement(
                    f"sweep: {name}: expected {first:g} as on rank 0, found {found:g} on rank {rank}; give all "
                    "ranks the same",
                    rank,
                )
    return int(limit)


def _run(step: Step, inlets: Tensor, columns: Sequence[Any]) -> list[Tensor]:
    """Return the states of all segments at each place within them, [segments * B, ...] each."""
    states = [inlets]
    for x in columns:
        state = step(states[-1], x)
        if (state.shape, state.dtype) != (inlets.shape, inlets.dtype):
            found, expected = (f"{t.dtype} {tuple(t.shape)}" for t in (state, inlets))
            raise UsageError(f"sweep: step must return a state like the one it takes, {expected}; found {found}")
        states.append(state)
    return states[1:]


def _settled(new: Tensor, old: Tensor, tolerance: float, comm: Comm) -> bool:
    """Return whether nothing has changed by more than the tolerance, on any rank; NaN always has. Collective."""
    change = torch.tensor(float((new - old).abs().max()), dtype=torch.float64)
    return bool((comm.gather(change) <= tolerance).all())
