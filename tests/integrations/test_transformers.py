"""Hugging Face's Trainer, really training: the plain loop bit for bit, resumed from its own checkpoints."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from plain_loop import ACCUMULATE, LR, RULE, numbers, plain, quiet
from pool import Pool
from swarmstep import PSOPS, Every, LocalSGD, Strategy, simulate
from swarmstep.comm.group import Group
from swarmstep.errors import UsageError
from swarmstep.integrations.alone import alone

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")

STEPS = 10
BATCH = 2
CLIP = 0.5


def network() -> Any:
    torch.manual_seed(3)
    sizes = {"vocab_size": 16, "n_positions": 8, "n_embd": 8, "n_layer": 1, "n_head": 2}
    still = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    config = transformers.GPT2Config(**sizes, **still, bos_token_id=0, eos_token_id=0)
    return transformers.GPT2LMHeadModel(config)


def texts(rank: int) -> list[dict[str, Tensor]]:
    tokens = torch.randint(16, (STEPS * ACCUMULATE * BATCH, 8), generator=torch.Generator().manual_seed(rank))
    return [{"input_ids": row, "labels": row} for row in tokens]


def optimizer_of(model: nn.Module) -> tuple[Any, Any]:
    adam = torch.optim.AdamW(model.parameters(), LR)
    return adam, torch.optim.lr_scheduler.LambdaLR(adam, lambda step: 1.0 - step / STEPS)


def trainer_of(comm: Group, folder: str, model: Any = None, **arguments: Any) -> Any:
    wish: dict[str, Any] = {
        "max_steps": STEPS,
        "save_steps": 6,
        "output_dir": f"{folder}/{comm.rank}",
        **arguments,
    }
    model = model or network()
    with alone():
        args = transformers.TrainingArguments(
            **wish,
            per_device_train_batch_size=BATCH,
            gradient_accumulation_steps=ACCUMULATE,
            max_grad_norm=CLIP,
            train_sampling_strategy="sequential",
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
        )
        return transformers.Trainer(model, args, train_dataset=texts(comm.rank), optimizers=optimizer_of(model))


def trained(comm: Group, folder: str, strategy: Strategy = RULE, resume: bool = False) -> list[float]:
    from swarmstep.integrations.transformers import synchronize

    with quiet():
        trainer = trainer_of(comm, folder)
        rounds: list[Any] = []
        sync = synchronize(trainer, strategy, comm, on_event=rounds.append)
        trainer.train(resume_from_checkpoint=f"{folder}/{comm.rank}/checkpoint-6" if resume else None)
    assert sync.steps == STEPS
    assert len(rounds) == sync.rounds - (1 if resume else 0)
    return numbers(trainer.model)


def by_hand(comm: Group, strategy: Strategy = RULE) -> list[float]:
    model = network()
    adam, schedule = optimizer_of(model)
    rows = torch.stack([text["input_ids"] for text in texts(comm.rank)]).split(BATCH)

    def loss_of(model: nn.Module, tokens: Tensor) -> Tensor:
        """The Trainer divides the sum over a batch by the labels of the whole step."""
        count = ACCUMULATE * tokens.numel()
        return model(tokens, labels=tokens, num_items_in_batch=torch.tensor(count)).loss * ACCUMULATE

    return plain(comm, model, adam, list(rows), loss_of, strategy=strategy, schedule=schedule, clip=CLIP)


@pytest.mark.parametrize("strategy", [RULE, PSOPS(when=Every(2))], ids=["diloco", "pso-ps"])
def test_the_trainer_is_the_plain_loop(tmp_path: Path, strategy: Strategy) -> None:
    own = simulate(lambda comm: by_hand(comm, strategy), 2)
    assert simulate(lambda comm: trained(comm, str(tmp_path), strategy), 2) == own
    assert own[0] == own[1]


def test_it_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    """From step 6, between the rounds of 4 and 8: anchor, velocity and the window are in optimizer.pt."""
    whole = simulate(lambda comm: trained(comm, str(tmp_path)), 2)
    assert simulate(lambda comm: trained(comm, str(tmp_path), resume=True), 2) == whole


@pytest.mark.slow
def test_real_processes(tmp_path: Path, pool: Pool) -> None:
    """Under torchrun's variables; without `alone` the Trainer would wrap the model in DistributedDataParallel."""
    whole = simulate(lambda comm: trained(comm, str(tmp_path / "simulated")), 2)
    assert pool.run(trained, str(tmp_path / "real"), workers=2) == whole
    assert pool.run(trained, str(tmp_path / "real"), RULE, True, workers=2) == whole


def outside(comm: Group, folder: str) -> str:
    from swarmstep.integrations.transformers import synchronize

    with quiet():
        os.environ["LOCAL_RANK"] = str(comm.rank)
        try:
            args = transformers.TrainingArguments(f"{folder}/{comm.rank}", use_cpu=True, report_to=[])
            trainer = transformers.Trainer(network(), args, train_dataset=texts(comm.rank))
        finally:
            del os.environ["LOCAL_RANK"]
        with pytest.raises(UsageError) as caught:
            synchronize(trainer, RULE, comm)
    return str(caught.value)


@pytest.mark.slow
def test_a_trainer_of_several_processes_is_refused(tmp_path: Path, pool: Pool) -> None:
    for said in pool.run(outside, str(tmp_path)):
        assert "the Trainer works with 4 processes, and would synchronize them at every step" in said


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"output_dir": "same"}, "ranks 0 and 1 write their checkpoints to the same folder"),
        ({"auto_find_batch_size": True}, "the Trainer has auto_find_batch_size"),
    ],
)
def test_what_is_refused(tmp_path: Path, arguments: dict[str, Any], why: str) -> None:
    from swarmstep.integrations.transformers import synchronize

    if "output_dir" in arguments:
        arguments = {"output_dir": str(tmp_path / "same")}
    with pytest.raises(UsageError, match=why):
        simulate(lambda comm: synchronize(trainer_of(comm, str(tmp_path), **arguments), RULE, comm), 2)


def test_weights_alone_are_no_checkpoint(tmp_path: Path) -> None:
    """With save_only_model there is no optimizer.pt, hence no state of the swarm."""
    from swarmstep.integrations.transformers import synchronize

    def train(comm: Group, resume: str | None) -> None:
        trainer = trainer_of(comm, str(tmp_path), save_only_model=True)
        synchronize(trainer, LocalSGD(when=Every(4)), comm)
        trainer.train(resume_from_checkpoint=resume)

    simulate(lambda comm: train(comm, None), 1)
    with pytest.raises(UsageError, match="was loaded after the Synchronizer was made"):
        simulate(lambda comm: train(comm, str(tmp_path / "0" / "checkpoint-6")), 1)
