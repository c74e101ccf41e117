"""One's own loop in real processes: the same bits as in one process, and one program for all kinds of groups."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from helpers import Trainer, same
from pool import Pool
from swarmstep import EMA, DiLoCo, Every, Int8, simulate
from swarmstep.comm.group import Group
from swarmstep.comm.process_groups import serve_store

RULE = DiLoCo(when=Every(4))


def train(comm: Group, folder: str, codec: bool) -> list[Any]:
    """Train, look, save in the middle of a round, throw everything away, and go on."""
    given: dict[str, Any] = {"delay": 3, "codec": Int8() if codec else None}
    trainer = Trainer(RULE, comm, **given)
    ema, shown = EMA(trainer.sync, 0.5), []
    for step in range(10):
        ema.update(trainer.step())
        shown.append(trainer.sync.evaluate(lambda model: [p.detach().clone() for p in model.parameters()]))
        if step == 5:
            trainer.sync.save(folder, trainer.model, trainer.optimizer, ema)
            trainer = Trainer(RULE, comm, **given)
            ema = EMA(trainer.sync, 0.5)
            assert trainer.sync.load(folder, trainer.model, trainer.optimizer, ema)
            trainer.done = trainer.sync.steps
    with trainer.sync:
        pass
    return [shown, trainer.weights(), ema.evaluate(lambda model: [p.detach().clone() for p in model.parameters()])]


@pytest.mark.parametrize("codec", [False, True])
def test_processes_and_simulation_agree(codec: bool, pool: Pool, tmp_path: Path) -> None:
    found = pool.run(train, str(tmp_path / "processes"), codec, workers=3)
    assert same(found, simulate(lambda comm: train(comm, str(tmp_path / "simulated"), codec), 3))


PROGRAM = """
import sys, hashlib
import torch
from torch import nn
from swarmstep import DiLoCo, Every, Options, Synchronizer, run

def train(comm):
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    with Synchronizer(model, DiLoCo(when=Every(4)), comm, Options(delay=2)) as sync:
        resumed = sync.load(sys.argv[1], model)
        for step in sync.until(int(sys.argv[2])):
            inputs = torch.randn(8 * sync.comm.size, 3, generator=torch.Generator().manual_seed(step))
            model(inputs[sync.comm.rank :: sync.comm.size]).square().mean().backward()
            with torch.no_grad():
                for p in model.parameters():
                    p -= 0.1 * p.grad
            sync.step()
            model.zero_grad()
            if sync.steps % 10 == 0:
                sync.save(sys.argv[1], model)
    return resumed, hashlib.sha256(model.weight.detach().numpy().tobytes()).hexdigest()

if __name__ == "__main__":
    torch.set_num_threads(1)
    found = run(train, workers=2, exact=True)
    if found:
        print(*found, flush=True)
"""


def started(program: Path, folder: Path, steps: int, kind: str, workers: int = 2) -> str:
    """Return what a program has printed that was started alone, as by torchrun, or by `swarmstep run`."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("SWARMSTEP_", "RANK"))}
    command, environments, store = [sys.executable, str(program), str(folder), str(steps)], [plain], None
    if kind == "elastic":
        run = ["-m", "swarmstep", "run", "--workers", str(workers)]
        command = [sys.executable, *run, *command[1:]]
    if kind == "processes":
        store, port = serve_store()
        here = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
        environments = [
            {**plain, **here, "RANK": str(rank), "WORLD_SIZE": str(workers)} for rank in range(workers)
        ]
    processes = [
        subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for env in environments
    ]
    told = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), told
    del store
    return "".join(out for out, _ in told)


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
def test_one_program_alone_in_processes_and_elastic(tmp_path: Path) -> None:
    """The same bits in all three, also where the run is stopped and goes on."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    whole = {kind: started(program, tmp_path / kind, 25, kind) for kind in ("alone", "processes", "elastic")}
    assert whole["alone"].startswith("False ")
    assert len({*whole.values()}) == 1, whole
    for kind in whole:
        started(program, tmp_path / f"{kind}, parts", 13, kind)
        (tmp_path / f"{kind}, parts").rename(tmp_path / f"{kind}, moved")
        assert started(program, tmp_path / f"{kind}, moved", 25, kind) == whole[kind].replace("False", "True")


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
def test_another_number_of_elastic_workers_goes_on(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.replace("delay=2", "delay=0"))
    started(program, tmp_path / "run", 13, "elastic", workers=2)
    assert started(program, tmp_path / "run", 25, "elastic", workers=3).startswith("True ")
    assert len([*(tmp_path / "run" / "step-00000020").iterdir()]) == 3
