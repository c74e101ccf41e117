"""The process of one worker: of a fixed group, as torchrun starts it, or a member of groups that change."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swarmstep.comm.base import Comm
from swarmstep.comm.dist import DistComm
from swarmstep.elastic.membership import Membership
from swarmstep.elastic.torchft import LighthouseMembership
from swarmstep.errors import UsageError
from swarmstep.runtime.startup_checks import agree
from swarmstep.train import elastic_coordinator, lockstep_coordinator
from swarmstep.train.asynchronous import processes as asynchronous
from swarmstep.train.config import Config
from swarmstep.train.join import read_settings, workers_here
from swarmstep.train.layerwise import run as layerwise
from swarmstep.train.rank_0 import from_rank_0
from swarmstep.workloads import Workload

if TYPE_CHECKING:
    from swarmstep.train.session import Session

# Seconds without a sign of life after which a worker is lost: where that ends the run, and where it does not.
SILENCE, ELASTIC_SILENCE, ASYNCHRONOUS_SILENCE = 30.0, 5.0, 10.0


def in_group(session: Session) -> dict[str, Any] | None:
    """Be one of a fixed number of workers; return the summary on rank 0."""
    fast_sums = session.given.get("fast_sums", False)
    call = session.call
    comm = DistComm.from_env(
        session.given["backend"],
        exact=not fast_sums,
        silence=call.silence or SILENCE,
        patience=call.patience,
    )
    try:
        _find_run(session, comm)
        config, workload = session.ready(_shared_config(session, comm))
        if config.asynchronous:
            raise UsageError(
                f"{config.strategy} starts its own processes: expected swarmstep train by itself, found a group"
            )
        agree({"corpus": workload.corpus or "none"}, comm)
        if config.workers != comm.size:
            raise UsageError(f"expected {config.workers} processes, as the run has workers, found {comm.size}")
        if config.fast_sums != fast_sums:
            raise UsageError("--fast-sums: the run to resume has it; give it here, too")
        run = layerwise.run if config.layerwise else lockstep_coordinator.run
        summary = run(config, workload, comm, session.job)
    finally:
        comm.close()
    return summary if comm.rank == 0 else None


def _find_run(session: Session, comm: Comm) -> None:
    """Go on with the run in --out if there is one: torchrun starts all workers again with the same command."""
    if session.given.get("elastic") == "torchrun" and session.call.out:
        file = Path(session.call.out) / "config.json"
        if from_rank_0(lambda: "there" if file.exists() else "", comm):
            session.call = dataclasses.replace(session.call, resume=session.call.out, out=None)
            session.job = dataclasses.replace(session.job, resume=True)


def _shared_config(session: Session, comm: Comm) -> Config:
    """Return rank 0's config: the other machines need not see the folder of a run to resume."""
    text = from_rank_0(lambda: json.dumps(dataclasses.asdict(session.config())), comm)
    return Config(**json.loads(text))


def as_member(session: Session) -> dict[str, Any] | None:
    """Be a worker of an elastic run; return the summary on the one that concludes it."""
    config, workload = _joined(session) if session.started.joined else session.ready(session.config(done=True))
    if config.asynchronous:  # of a machine that has joined
        return _as_node(session, config, workload, workers_here(session.started.joined or ""))
    kind = LighthouseMembership if config.elastic == "torchft" else Membership
    membership = kind.from_env(
        silence=session.call.silence or ELASTIC_SILENCE,
        patience=session.call.patience,
        exact=not config.fast_sums,
    )
    folder = session.started.folder
    membership.resumes = folder is not None
    return elastic_coordinator.run(config, workload, membership, dataclasses.replace(session.job, out=folder))


def _joined(session: Session) -> tuple[Config, Workload]:
    """Return the config of the run that was joined, with this machine's own workload and data."""
    config, own = read_settings(session.started.joined or ""), session.config(done=True)
    return session.ready(dataclasses.replace(config, workload=own.workload, data=own.data))


def as_node(session: Session) -> dict[str, Any] | None:
    """Be a worker or the server of an asynchronous run; return the summary on the server."""
    config, workload = session.ready(session.config(done=True))
    if not config.asynchronous:
        raise UsageError(
            f"{config.strategy} under swarmstep run: expected swarmstep train by itself, which starts workers"
        )
    return _as_node(session, config, workload, session.call.here)


def _as_node(session: Session, config: Config, workload: Workload, here: int | None) -> dict[str, Any] | None:
    call, folder = session.call, session.started.folder
    job = dataclasses.replace(session.job, out=folder, keep=folder is not None)
    slot = int((session.started.worker or "").partition(".")[0])
    node = asynchronous.node_of(slot, config, config.workers if here is None else here)
    return asynchronous.as_node(config, workload, job, node, call.silence or ASYNCHRONOUS_SILENCE, call.patience)
