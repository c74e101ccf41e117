"""What tests run both in process and in real processes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

import torch

from helpers import Trainer
from swarmstep import Comm, Strategy
from swarmstep.comm.secure.auth import prove
from swarmstep.errors import CommError, NotFinite

SECRET = b"correct horse battery staple"


OTHER = b"wrong horse, battery and staple"


def proving(comm: Comm, others: list[int]) -> str:
    """Return what `prove` raises where the ranks `others` have another secret."""
    try:
        prove(comm, OTHER if comm.rank in others else SECRET)
    except CommError as error:
        return str(error)
    return ""


class Gate:
    """Lets who writes it wait until it is opened; is read as an empty dictionary."""

    def __init__(self) -> None:
        self.opened = threading.Event()

    def __reduce__(self) -> Any:
        assert self.opened.wait(30), "the test did not open the gate"
        return OrderedDict, ()


def poisoned(comm: Comm, strategy: Strategy) -> str:
    """Let rank 1's weights turn NaN; return what is raised, or what is left."""
    trainer = Trainer(strategy, comm)
    try:
        for step in range(7):
            loss = trainer.local_step()
            if step == 1 and comm.rank == 1:
                with torch.no_grad():
                    next(trainer.model.parameters())[0, 0] = torch.nan
            trainer.sync.step(loss, lr=0.1)
        return "finite" if trainer.weights().isfinite().all() else "NaN"
    except NotFinite as error:
        return str(error)
