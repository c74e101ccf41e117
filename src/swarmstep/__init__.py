"""Train one PyTorch model with many workers that talk rarely.

Each worker takes some local optimizer steps, then the workers take one swarm step together::

    def probe(module, step):  # on examples held out from training, the same on all workers
        return cross_entropy(module(held_inputs), held_targets, reduction="none")

    with Synchronizer(model, InformedSwarm(when=Every(64)), comm, Options(probe=probe)) as sync:
        for batch in batches:
            loss = loss_fn(model, batch)
            loss.backward()
            optimizer.step()
            sync.step(loss)
            optimizer.zero_grad()
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from swarmstep.comm.base import Comm
    from swarmstep.comm.codecs import Bfloat16, Int4, Int8, TopK
    from swarmstep.comm.coded import Coded
    from swarmstep.comm.dist import DistComm
    from swarmstep.comm.group import Group
    from swarmstep.comm.low_rank import LowRank
    from swarmstep.comm.metered import Metered
    from swarmstep.comm.nm_codec import NMCodec
    from swarmstep.comm.sim import SimComm, simulate
    from swarmstep.comm.solo import SoloComm
    from swarmstep.comm.sparseloco import SparseLoCo
    from swarmstep.data.own_shards import seed_rank, shard
    from swarmstep.elastic.membership import Membership
    from swarmstep.runtime.balance import Balance
    from swarmstep.runtime.ema import EMA
    from swarmstep.runtime.gradients import average_gradients
    from swarmstep.runtime.options import Options
    from swarmstep.runtime.program import run
    from swarmstep.runtime.synchronizer import Synchronizer
    from swarmstep.signal import MembershipChange, Round
    from swarmstep.strategies import STRATEGIES
    from swarmstep.strategies.base import Strategy
    from swarmstep.strategies.bmuf import BMUF
    from swarmstep.strategies.diloco import DiLoCo
    from swarmstep.strategies.easgd import EASGD
    from swarmstep.strategies.edit import EDiT
    from swarmstep.strategies.fedpso import FedPSO
    from swarmstep.strategies.gasloc import GASLoC
    from swarmstep.strategies.gossip_exponential import GossipExponential
    from swarmstep.strategies.gossip_ring import GossipRing
    from swarmstep.strategies.hierarchical import Hierarchical
    from swarmstep.strategies.independent import Independent
    from swarmstep.strategies.informed_swarm import InformedSwarm
    from swarmstep.strategies.local_sgd import LocalSGD
    from swarmstep.strategies.median import CoordinateMedian
    from swarmstep.strategies.noloco import NoLoCo
    from swarmstep.strategies.osp import OSP
    from swarmstep.strategies.papa import PAPA
    from swarmstep.strategies.pso_ps import PSOPS
    from swarmstep.strategies.slowmo import SlowMo
    from swarmstep.strategies.sparta import SPARTA
    from swarmstep.strategies.sparta_diloco import SPARTADiLoCo
    from swarmstep.strategies.synchronous import Synchronous
    from swarmstep.strategies.trimmed_mean import TrimmedMean
    from swarmstep.strategies.warmup import Warmup
    from swarmstep.when import Balanced, Every, EveryTime, GradientChange, Never, QuadraticRule, When

__version__ = "0.1.0"

__all__ = [
    "BMUF",
    "EASGD",
    "EMA",
    "OSP",
    "PAPA",
    "PSOPS",
    "SPARTA",
    "STRATEGIES",
    "Balance",
    "Balanced",
    "Bfloat16",
    "Coded",
    "Comm",
    "CoordinateMedian",
    "DiLoCo",
    "DistComm",
    "EDiT",
    "Every",
    "EveryTime",
    "FedPSO",
    "GASLoC",
    "GossipExponential",
    "GossipRing",
    "GradientChange",
    "Group",
    "Hierarchical",
    "Independent",
    "InformedSwarm",
    "Int4",
    "Int8",
    "LocalSGD",
    "LowRank",
    "Membership",
    "MembershipChange",
    "Metered",
    "NMCodec",
    "Never",
    "NoLoCo",
    "Options",
    "QuadraticRule",
    "Round",
    "SPARTADiLoCo",
    "SimComm",
    "SlowMo",
    "SoloComm",
    "SparseLoCo",
    "Strategy",
    "Synchronizer",
    "Synchronous",
    "TopK",
    "TrimmedMean",
    "Warmup",
    "When",
    "average_gradients",
    "run",
    "seed_rank",
    "shard",
    "simulate",
]

_MODULES = {
    "BMUF": "swarmstep.strategies.bmuf",
    "EASGD": "swarmstep.strategies.easgd",
    "EDiT": "swarmstep.strategies.edit",
    "EMA": "swarmstep.runtime.ema",
    "OSP": "swarmstep.strategies.osp",
    "PAPA": "swarmstep.strategies.papa",
    "PSOPS": "swarmstep.strategies.pso_ps",
    "SPARTA": "swarmstep.strategies.sparta",
    "SPARTADiLoCo": "swarmstep.strategies.sparta_diloco",
    "STRATEGIES": "swarmstep.strategies",
    "Balance": "swarmstep.runtime.balance",
    "Balanced": "swarmstep.when",
    "Bfloat16": "swarmstep.comm.codecs",
    "Coded": "swarmstep.comm.coded",
    "Comm": "swarmstep.comm.base",
    "CoordinateMedian": "swarmstep.strategies.median",
    "DiLoCo": "swarmstep.strategies.diloco",
    "DistComm": "swarmstep.comm.dist",
    "Every": "swarmstep.when",
    "EveryTime": "swarmstep.when",
    "FedPSO": "swarmstep.strategies.fedpso",
    "GASLoC": "swarmstep.strategies.gasloc",
    "GossipExponential": "swarmstep.strategies.gossip_exponential",
    "GossipRing": "swarmstep.strategies.gossip_ring",
    "GradientChange": "swarmstep.when",
    "Group": "swarmstep.comm.group",
    "Hierarchical": "swarmstep.strategies.hierarchical",
    "Independent": "swarmstep.strategies.independent",
    "InformedSwarm": "swarmstep.strategies.informed_swarm",
    "Int4": "swarmstep.comm.codecs",
    "Int8": "swarmstep.comm.codecs",
    "LowRank": "swarmstep.comm.low_rank",
    "NMCodec": "swarmstep.comm.nm_codec",
    "LocalSGD": "swarmstep.strategies.local_sgd",
    "Membership": "swarmstep.elastic.membership",
    "Metered": "swarmstep.comm.metered",
    "Never": "swarmstep.when",
    "NoLoCo": "swarmstep.strategies.noloco",
    "Options": "swarmstep.runtime.options",
    "QuadraticRule": "swarmstep.when",
    "MembershipChange": "swarmstep.signal",
    "Round": "swarmstep.signal",
    "SimComm": "swarmstep.comm.sim",
    "SlowMo": "swarmstep.strategies.slowmo",
    "SoloComm": "swarmstep.comm.solo",
    "SparseLoCo": "swarmstep.comm.sparseloco",
    "Synchronous": "swarmstep.strategies.synchronous",
    "Strategy": "swarmstep.strategies.base",
    "Synchronizer": "swarmstep.runtime.synchronizer",
    "TopK": "swarmstep.comm.codecs",
    "TrimmedMean": "swarmstep.strategies.trimmed_mean",
    "Warmup": "swarmstep.strategies.warmup",
    "When": "swarmstep.when",
    "average_gradients": "swarmstep.runtime.gradients",
    "run": "swarmstep.runtime.program",
    "seed_rank": "swarmstep.data.own_shards",
    "shard": "swarmstep.data.own_shards",
    "simulate": "swarmstep.comm.sim",
}
"""Where each public name is defined. It is imported when it is first used: `import swarmstep` imports no torch."""

if not TYPE_CHECKING:  # a type checker takes the imports above, and reports any other name

    def __getattr__(name: str) -> object:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(_MODULES[name]), name)
        return value


def __dir__() -> list[str]:
    return [*__all__]
