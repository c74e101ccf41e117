"""The cost of a round on the network in time and bytes, plain and coded: ``bench wire``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from swarmstep.comm.codecs import parse
from swarmstep.comm.dist import DistComm
from swarmstep.comm.elementwise import Elementwise
from swarmstep.comm.error_feedback import WEIGHT
from swarmstep.comm.group import Group
from swarmstep.comm.p2p import PIECE, Route
from swarmstep.comm.sparseloco import SparseLoCo
from swarmstep.comm.vector_codec import chunk_length
from swarmstep.microbench.cases import CaseMaker
from swarmstep.microbench.checks import check_memory, checked
from swarmstep.microbench.interleaved_timing import Case, barrier, interleaved_medians
from swarmstep.microbench.place import interface_counters, placed
from swarmstep.microbench.results import Measurement, Report, Sent, rows_of
from swarmstep.microbench.settings import WireSettings
from swarmstep.microbench.workers import WorkerGroup
from swarmstep.runtime.roll_call import HEAD
from swarmstep.strategies import LocalSGD
from swarmstep.strategies.pso_ps import PSOPS
from swarmstep.when import Every

VECTORS = 40
PLAIN = "local-sgd"
CODECS = ("bfloat16", "int8", "int4", "topk:0.02", "sparseloco")
ROLL_CALL = 8 * HEAD  # bytes of a worker's row in the roll call


def lead(settings: WireSettings, group: WorkerGroup) -> Report:
    """Start the workers and return their report."""
    checked(
        settings, workers=(2, 64), parameters=(1, 10**9), tensors=(1, settings.parameters), repeats=(1, 10_000)
    )
    check_memory(settings.workers * settings.parameters, VECTORS, "fewer --workers or --parameters")
    of_workers = {name: getattr(settings, name) for name in ("parameters", "tensors", "repeats", "seed")}
    with placed(settings.link, settings.workers) as (place, rate):
        return group(settings.workers, of_workers | {"rate": rate}, place)


def work(comm: Group, settings: Mapping[str, Any]) -> Report:
    """Measure as one of the workers."""
    assert isinstance(comm, DistComm)
    make = CaseMaker(comm, settings["parameters"], settings["tensors"], settings["seed"])
    collectives = {
        "all-reduce": make.all_reduce(),
        "broadcast, tree": _broadcast(make, comm, chain=False),
        "broadcast, chain": _broadcast(make, comm, chain=True),
    }
    rounds = {PLAIN: make.synchronized(LocalSGD(when=Every(1)))}
    rounds["pso-ps"] = make.synchronized(PSOPS(when=Every(1)), lambda round_: (1.0 + comm.rank) / (1.0 + round_))
    for spec in CODECS:
        rounds[f"{PLAIN}, {spec}"] = make.synchronized(LocalSGD(when=Every(1)), codec=parse(spec))
    medians = interleaved_medians({**collectives, **rounds}, comm, settings["repeats"])
    report = Report()
    rate, size, P = settings["rate"], comm.size, make.parameters
    ideals = _ideals(size, P, rate) if rate else {}
    for name in collectives:
        limit = ideals.get(name)
        ratio = medians[name] / limit if limit else None
        report.rows.append(Measurement(name, size, P, medians[name], "ideal" if limit else None, limit, ratio))
    report.rows += rows_of(medians, {name: None if name == PLAIN else PLAIN for name in rounds}, size, P)
    for name, case in rounds.items():
        report.sent.append(_sent(name, case, make, bool(rate)))
    return report


def _broadcast(make: CaseMaker, comm: DistComm, *, chain: bool) -> Case:
    """Return a broadcast from rank 0 whose way is not left to measurement."""
    way = comm.reusing()
    way.routes = {"broadcast": Route(point_to_point=chain)}
    vector = make.vector()
    return Case(way.recycle, lambda: way.broadcast(vector, 0))


def _ideals(size: int, P: int, rate: float) -> dict[str, float]:
    """Return the minimal seconds of the algorithms on links of `rate`, without headers and latency."""
    vector = 32 * P / rate
    return {
        "all-reduce": 2 * (size - 1) / size * vector,
        "broadcast, chain": vector + (size - 2) * 8 * PIECE / rate,
    }


def expected_bytes(name: str, size: int, make: CaseMaker) -> float:
    """Return the bytes that a worker sends in a round by the formula, mean over the workers."""
    P = make.parameters
    roll_call = (size - 1) * ROLL_CALL
    if name == PLAIN:
        return roll_call + 2 * (size - 1) * (P + 1) * 4 / size
    if name == "pso-ps":
        return roll_call + (size - 1) * P * 4 / size
    codec = parse(name.partition(", ")[2])
    if isinstance(codec, SparseLoCo):
        return roll_call + (size - 1) * (WEIGHT + codec.packet(make.sizes))
    assert isinstance(codec, Elementwise)
    return roll_call + (size - 1) * (WEIGHT + 2 * codec.size(chunk_length(codec, P, size)))


def _sent(name: str, case: Case, make: CaseMaker, counted: bool) -> Sent:
    """Run one more round and return the bytes sent: as metered, by the formula, and on the interface."""
    comm = make.comm
    case.change()
    barrier(comm)
    before = interface_counters() if counted else None
    report: Any = case.run()
    barrier(comm)
    payload = interface_counters().payload_since(before) if before else 0
    means = comm.gather(torch.tensor([report.bytes_sent, payload], dtype=torch.float64)).mean(0).tolist()
    return Sent(
        name,
        comm.size,
        make.parameters,
        means[0],
        expected_bytes(name, comm.size, make),
        means[1] if counted else None,
    )
