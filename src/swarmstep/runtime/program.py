"""One program for all kinds of groups: in this process, in those of torchrun, or in workers that come and go."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Generator

from swarmstep.arguments import check_type
from swarmstep.comm.background import T
from swarmstep.comm.dist import DistComm
from swarmstep.comm.group import Group
from swarmstep.comm.sim import simulate
from swarmstep.console import say
from swarmstep.elastic.membership import Membership
from swarmstep.errors import CommError, RunOver

MANY = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")  # how many srun, Open MPI, MPICH have started


def run(train: Callable[[Group], T], workers: int = 4, *, exact: bool = False) -> T | None:
    """Call `train(comm)` for each worker of the group that this program was started in.

    - ``python PROGRAM.py``: `workers` workers inside this process (`simulate`). So does each process that srun or
      mpirun starts without setting RANK, and says so.
    - ``torchrun --nproc-per-node W PROGRAM.py``, or whatever else sets RANK and its like: W processes
      (`DistComm.from_env`).
    - ``swarmstep run --workers W PROGRAM.py``: W processes of an elastic group, which are replaced when they die
      (`Membership.from_env`). The first Ctrl-C ends `Synchronizer.until` after the next round, on all workers.

    Args:
        train: is called once in each process, or in simulation in a thread for each worker.
        workers: in one process; elsewhere whoever starts the program says how many.
        exact: as in `DistComm`: sums in rank order, so that all three give the same bits.

    Returns:
        What `train` returned on the first rank, in its process; None in all others. In an elastic group the first
        worker that is left stands in for a lost one.

    Raises:
        SystemExit: what the workers do together has failed, as is said in a line, with the error as its cause. A
            worker of an elastic group is to be replaced then.
    """
    check_type("run: workers", workers, int)
    if not callable(train):
        check_type("run: train", train, Callable)
    if "SWARMSTEP_WORKER" in os.environ:
        return _elastic(train, exact)
    with _in_a_line():
        if "RANK" not in os.environ:
            _say_if_one_of_many(workers)
            return simulate(train, workers)[0]
        comm = DistComm.from_env(exact=exact)
        result = train(comm)
        comm.close()
        return result if comm.rank == 0 else None


def _say_if_one_of_many(workers: int) -> None:
    """Say that the processes of srun or mpirun do not train together by themselves."""
    size = next((os.environ[name] for name in MANY if os.environ.get(name, "1") != "1"), "")
    if size:
        say(
            f"run: RANK is not set, so this process, one of {size}, simulates {workers} workers by itself; to "
            "train together, start it with torchrun, or set RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT"
        )


def _elastic(train: Callable[[Group], T], exact: bool) -> T | None:
    with contextlib.ExitStack() as stack:
        members = Membership.from_env(exact=exact)
        stack.callback(members.leave)
        stack.enter_context(contextlib.suppress(RunOver))  # the run has ended without this worker
        with _in_a_line():
            result = train(members.join())
            return members.conclude(lambda: result)
    return None


@contextlib.contextmanager
def _in_a_line() -> Generator[None]:
    """End the program where workers cannot go on together, and say why in a line."""
    try:
        yield
    except RunOver:
        raise
    except CommError as error:
        say(str(error))
        raise SystemExit(error.exit_code) from error
