"""What the runtime, not the method, needs to know."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from swarmstep.arguments import Checked, check_type
from swarmstep.comm.base import Comm
from swarmstep.comm.codec import Codec
from swarmstep.errors import UsageError
from swarmstep.runtime import optimizer_state
from swarmstep.runtime.optimizer_state import Keeper, Rule


class Stateful(Protocol):
    """What can be saved and loaded, like an optimizer."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: dict[str, Any], /) -> object: ...


@dataclasses.dataclass(frozen=True)
class Options(Checked):
    """What the runtime, not the method, needs to know.

    Args:
        seed: of all randomness in the rounds, the same on all ranks.
        buffers: what happens to floating-point buffers (BatchNorm statistics) in a round: "mean", they take
            what the round agreed on; "local", each worker keeps its own; "first", all take those of the first
            rank that takes part. None:
            the strategy's default.
        probe: probe(module, step) is the mean loss of a module (in eval mode) on a batch that is the same on
            all ranks and apart from training data; better, a tensor [n] of the losses of its n examples, which
            tell the informed swarm how noisy their mean is. It may differ from step to step, so that a round
            looks at a part of a larger set; then let the i-th example be one of the i-th part of the set.
            Strategies that measure fitness on a probe need it. Any constant may be added to it. It runs in the
            autocast of the step, if any; with `delay` beside the training, without that, and must not draw from
            torch's global generator.
        probe_cost: of one probe, in local steps; strategies keep its share of the time small by it. None:
            measured, and then which rounds probe depends on the machine.
        delay: local steps that are computed while a round travels, at least 0. A round lands this many steps
            after it started, or when the next one starts. What it found is added as a correction, so that the
            steps made meanwhile are kept.
        mix: share of a worker's own weights when a round lands, 0 to 1: x = mix x + (1 - mix) y, where y is
            what the round made of the weights it started from (Streaming DiLoCo). None: the correction.
        eager: while a round travels, a worker goes on from the outer step of its own share of the mean, and takes
            that of the others when it lands (Eager Updates). Needs a `delay`, no `mix`, and a strategy with such a
            step: DiLoCo. Without it a worker keeps all of its own step meanwhile (docs/overlap.md).
        fragments: in how many parts the model is synchronized, each at steps of its own. Needs when=Every(n),
            n >= fragments, and a strategy that asks no probe.
        codec: how vectors are coded on the wire, from `swarmstep.comm.codecs` (None: as they are).
        views: let the model's tensors be views of one flat vector, where that is possible, so that a round
            copies nothing; `finish` gives them memory of their own again. Only where nothing else cares for
            their memory: what was taken before (state_dict(), detach()) goes stale, a copy of the model or a
            part of it is saved with the whole vector, safetensors' save_model refuses them, and a tensor whose
            `.data` is set is an error.
        offload: "cpu" keeps all vectors of the rounds (anchors, velocities, bests) in host memory and sends
            from there. None: on the model's device.
        island: the group of ranks that hold the shards of this worker's model (FSDP2). The Synchronizer's own
            `comm` is then the group of those who hold the same shard, one in each island.
        stateful: in an elastic group, what a newcomer takes from a healthy member besides weights and swarm state:
            by name, the optimizer say. Numbers, strings and tensors.
        optimizer_state: what rounds do with the states of the `optimizers` (moments, momenta): "local", each
            worker keeps its own; "mean", each round averages all of them; a mapping such as {"exp_avg": 3,
            "exp_avg_sq": 6}, those that it names in each 3rd and 6th round (DES-LOC). For strategies that average
            the weights, without delay and island.
        optimizers: all that train the model; needed for `optimizer_state`.
    """

    seed: int = 0
    buffers: str | None = None
    probe: Callable[[nn.Module, int], Tensor | float] | None = None
    probe_cost: float | None = None
    delay: int = 0
    mix: float | None = None
    fragments: int = 1
    codec: Codec | None = None
    views: bool = False
    offload: str | None = None
    island: Comm | None = None
    stateful: Mapping[str, Stateful] = dataclasses.field(default_factory=dict[str, Stateful])
    optimizer_state: Rule = optimizer_state.LOCAL
    optimizers: Sequence[Keeper] = ()
    eager: bool = False

    def __post_init__(self) -> None:
        if self.delay < 0:
            raise UsageError(f"delay: expected a number of steps, 0 or more, found {self.delay}")
        if self.mix is not None and not 0.0 <= self.mix <= 1.0:
            raise UsageError(f"mix: expected 0 to 1, found {self.mix}")
        if self.eager and (not self.delay or self.mix is not None):
            raise UsageError(
                "eager: a worker goes on by itself while a round travels; expected a delay of at least 1 and no "
                f"mix, found delay {self.delay}, mix {self.mix}"
            )
        if self.offload not in (None, "cpu"):
            raise UsageError(f"offload: expected None or 'cpu', found {self.offload!r}")
        if self.island is not None and self.probe is not None:
            raise UsageError("probe: does not go with an island, since a worker's model is in shards")
        for optimizer in self.optimizers:
            check_type("Options: optimizers", optimizer, Keeper)
        others = {"delay": self.delay, "island": self.island}
        optimizer_state.check(self.optimizer_state, self.optimizers, others)
