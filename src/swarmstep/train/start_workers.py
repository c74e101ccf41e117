"""The process that starts the workers of a run: once and for all, or again and again as they are lost."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from swarmstep.console import say
from swarmstep.elastic import torchft
from swarmstep.errors import UsageError
from swarmstep.launch.processes import Place, launch
from swarmstep.train.asynchronous.peers import check_call
from swarmstep.train.config import Config
from swarmstep.train.join import address, check_own, joined, listening, published
from swarmstep.train.run_folder import new_folder
from swarmstep.train.shared_store import attached
from swarmstep.train.supervise import supervise
from swarmstep.workloads import Workload

if TYPE_CHECKING:
    from swarmstep.train.session import Session


def start(session: Session, arguments: Sequence[str]) -> int:
    """Check everything once, then start the workers of a run; return its exit code."""
    config, workload = session.ready(session.config())
    if config.backend == "nccl" and torch.cuda.device_count() < config.workers:
        found = torch.cuda.device_count()
        raise UsageError(f"--backend nccl: expected {config.workers} GPUs, found {found}; use gloo, or fewer")
    if config.fast_sums and not session.given.get("fast_sums"):  # of a resumed run
        arguments = [*arguments, "--fast-sums"]  # which workers need to know before they read its config
    if config.asynchronous:
        return _start_nodes(session, config, workload, arguments)
    if not config.elastic:
        return launch(arguments, config.workers)
    with contextlib.ExitStack() as stack:
        lighthouse = _lighthouse(session, config, stack)
        place = Place()
        if session.call.listen:
            where = address("--listen", session.call.listen)
            place = stack.enter_context(listening(where, config, workload, tunnel=session.call.tunnel))
        if session.call.store:
            place = stack.enter_context(attached(session.call.store, published(config, workload)))
        place = dataclasses.replace(place, environment={**place.environment, **lighthouse})
        folder = _folder(session, config)
        return supervise(arguments, config.workers, folder, place, resume=session.job.resume)


def _start_nodes(session: Session, config: Config, workload: Workload, arguments: Sequence[str]) -> int:
    """Start the nodes of an asynchronous run that are on this machine."""
    servers = config.nodes - config.workers
    here = config.workers if session.call.here is None else session.call.here
    if not 1 - servers <= here <= config.workers:
        raise UsageError(f"--here: expected {1 - servers} to {config.workers}, the workers, found {here}")
    if not servers:
        check_call(session.job)
    with contextlib.ExitStack() as stack:
        place = None
        if session.call.listen:
            where = address("--listen", session.call.listen)
            place = stack.enter_context(listening(where, config, workload, here, session.call.tunnel))
        folder = _folder(session, config)
        return supervise(arguments, here + servers, folder, place, resume=session.job.resume)


def join(session: Session, arguments: Sequence[str]) -> int:
    """Start workers for a run that another machine has started; return the exit code of their part."""
    workload = session.own_workload()
    with contextlib.ExitStack() as stack:
        where = address("--join", session.call.join or "")
        guest = stack.enter_context(joined(where, session.call.patience))
        check_own(session.typed, workload, guest)
        workers = Config(**session.given).workers
        lighthouse = _lighthouse(session, guest.config, stack)
        place = dataclasses.replace(guest.place, environment={**guest.place.environment, **lighthouse})
        folder = _folder(session, guest.config)
        code = supervise(arguments, workers, folder, place, trouble=guest.trouble)
    if code == 0:
        say(f"the run at {session.call.join} is over")
    return code


def _folder(session: Session, config: Config) -> Path | None:
    return session.job.out or (new_folder(config) if session.job.keep else None)


def _lighthouse(session: Session, config: Config, stack: contextlib.ExitStack) -> dict[str, str]:
    """Return what tells the workers where torchft's lighthouse is, if the run needs one; serve it if need be."""
    if config.elastic != "torchft":
        return {}
    call = session.call
    alone = not (call.listen or call.join)
    return {torchft.ADDRESS: stack.enter_context(torchft.serve_lighthouse(call.patience, alone=alone))}
