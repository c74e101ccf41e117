"""A process that is killed while it saves leaves a checkpoint to load."""

from __future__ import annotations

import os
import random
import signal
import time
import warnings
from pathlib import Path
from typing import Any

import torch

from forking import CONTEXT
from swarmstep.checkpoint.loader import load_any
from swarmstep.checkpoint.saver import Saver


def save_for_ever(folder: Path, said: int) -> None:
    """Save as two ranks, step after step; say a byte for each step that is whole."""
    savers = Saver(folder), Saver(folder)
    for step in range(1, 10_000):
        for rank, saver in enumerate(savers):
            saver.start(step, {"x": torch.full((300_000,), float(step)) + rank}, rank, 2)
        for saver in savers:
            saver.settle()
        for saver in savers:
            saver.prune(step)
        os.write(said, b".")


def kill_trials(end: Any, folder: Path, trials: int, seed: int) -> None:
    """Kill a process that saves, at a random moment, and load; say how often a file was torn."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)  # others would not live on in the child
    moments, torn = random.Random(seed), 0
    for trial in range(trials):
        where = folder / str(trial)
        ours, theirs = os.pipe()
        child = os.fork()
        if not child:
            try:
                save_for_ever(where, theirs)
            finally:
                os._exit(1)
        os.close(theirs)
        whole = sum(len(os.read(ours, 1)) for _ in range(moments.randint(1, 4)))
        time.sleep(moments.uniform(0, 0.03))
        os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        whole += len(os.read(ours, 10_000))
        step, states = load_any(where)
        assert step in (whole, whole + 1)
        for rank, found in enumerate(states):
            assert found["x"].eq(step + rank).all()
        assert len(states) == 2
        torn += len([*where.rglob("*")]) != 3 * len([*where.iterdir()])  # not two files in each folder
    end.send(torn)


def test_a_kill_at_any_moment_leaves_one_to_load(tmp_path: Path) -> None:
    here, there = CONTEXT.Pipe()
    process = CONTEXT.Process(target=kill_trials, args=(there, tmp_path, 20, 5))
    process.start()
    there.close()
    torn = here.recv()  # EOFError where a trial failed, which says so
    process.join()
    assert torn > 0  # some were killed between the first byte and the last
