"""Accelerate, really training: equal to the plain loop bit for bit, resumed from what `save_state` writes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from plain_loop import ACCUMULATE, LR, RULE, examples, numbers, plain, quiet, regression, squared
from pool import Pool
from swarmstep import PSOPS, Every, Strategy, simulate
from swarmstep.comm.group import Group
from swarmstep.errors import UsageError
from swarmstep.integrations.alone import alone

accelerate = pytest.importorskip("accelerate")
pytestmark = pytest.mark.filterwarnings("ignore")

BATCHES = 20
SAVED = 12  # batches: 6 steps, between the rounds of 4 and 8


def accelerator_of() -> Any:
    accelerate.state.AcceleratorState._reset_state(True)  # of an earlier test in this process
    return accelerate.Accelerator(cpu=True, gradient_accumulation_steps=ACCUMULATE)


def trained(comm: Group, folder: str, strategy: Strategy = RULE, resume: bool = False) -> list[float]:
    from swarmstep.integrations.accelerate import synchronized

    with quiet():
        with alone():
            accelerator = accelerator_of()
        model = regression()
        model, optimizer = accelerator.prepare(model, torch.optim.Adam(model.parameters(), LR))
        with synchronized(accelerator, model, optimizer, strategy, comm) as swarm:
            if resume:
                accelerator.load_state(f"{folder}/{comm.rank}")
            for number, batch in enumerate(examples(comm, BATCHES)):
                if resume and number < SAVED:
                    continue
                with accelerator.accumulate(model):
                    loss = squared(model, batch)
                    accelerator.backward(loss)
                    swarm.add_loss(loss / ACCUMULATE)
                    optimizer.step()
                    optimizer.zero_grad()
                if number + 1 == SAVED and folder:
                    accelerator.save_state(f"{folder}/{comm.rank}")
    assert swarm.sync.steps == BATCHES // ACCUMULATE
    return numbers(model)


def by_hand(comm: Group, strategy: Strategy = RULE) -> list[float]:
    model = regression()
    return plain(comm, model, torch.optim.Adam(model.parameters(), LR), examples(comm, BATCHES), strategy=strategy)


@pytest.mark.parametrize("strategy", [RULE, PSOPS(when=Every(2))], ids=["diloco", "pso-ps"])
def test_accelerate_is_the_plain_loop(strategy: Strategy) -> None:
    own = simulate(lambda comm: by_hand(comm, strategy), 2)
    assert simulate(lambda comm: trained(comm, "", strategy), 2) == own
    assert own[0] == own[1]


def test_it_goes_on_from_save_state(tmp_path: Path) -> None:
    whole = simulate(lambda comm: trained(comm, str(tmp_path)), 2)
    assert simulate(lambda comm: trained(comm, str(tmp_path), resume=True), 2) == whole == simulate(by_hand, 2)


@pytest.mark.slow
def test_real_processes(tmp_path: Path, pool: Pool) -> None:
    whole = simulate(by_hand, 2)
    assert pool.run(trained, str(tmp_path), workers=2) == whole
    assert pool.run(trained, str(tmp_path), RULE, True, workers=2) == whole


def outside(comm: Group) -> str:
    from swarmstep.integrations.accelerate import synchronized

    with quiet():
        os.environ["LOCAL_RANK"] = str(comm.rank)
        try:
            accelerator = accelerator_of()
        finally:
            del os.environ["LOCAL_RANK"]
        model = regression()
        optimizer = torch.optim.Adam(model.parameters(), LR)
        with pytest.raises(UsageError) as caught, synchronized(accelerator, model, optimizer, RULE, comm):
            pass
        accelerate.state.AcceleratorState._reset_state(True)
    return str(caught.value)


@pytest.mark.slow
def test_an_accelerator_of_several_processes_is_refused(pool: Pool) -> None:
    for said in pool.run(outside):
        assert "the Accelerator works with 4 processes" in said
        assert "with alone():" in said
