"""The methods: one paper, one file. `STRATEGIES` is the explicit list of all that have a name."""

from __future__ import annotations

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

STRATEGIES: dict[str, type[Strategy]] = {
    "bmuf": BMUF,
    "diloco": DiLoCo,
    "easgd": EASGD,
    "edit": EDiT,
    "fedpso": FedPSO,
    "gasloc": GASLoC,
    "gossip-exponential": GossipExponential,
    "gossip-ring": GossipRing,
    "hierarchical": Hierarchical,
    "independent": Independent,
    "local-sgd": LocalSGD,
    "median": CoordinateMedian,
    "noloco": NoLoCo,
    "osp": OSP,
    "papa": PAPA,
    "pso-ps": PSOPS,
    "slowmo": SlowMo,
    "sparta": SPARTA,
    "sparta-diloco": SPARTADiLoCo,
    "swarm": InformedSwarm,
    "synchronous": Synchronous,
    "trimmed-mean": TrimmedMean,
}
