"""Adapters: they are all that travels, counted to the byte, and they resume without the model below them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from plain_loop import LR, numbers, quiet
from pool import Pool
from swarmstep import Every, LocalSGD, Synchronizer, simulate
from swarmstep.comm.group import Group

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")

STEPS, EVERY = 6, 2
ROLL_CALL = 56  # bytes: docs/contract.md


def network() -> Any:
    torch.manual_seed(3)
    sizes = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    config = transformers.LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=2)
    wish = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    return peft.get_peft_model(transformers.LlamaForCausalLM(config), wish)


def trained(comm: Group) -> dict[str, Any]:
    with quiet():
        model = network()
        frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
        sync = Synchronizer(model, LocalSGD(when=Every(EVERY)), comm)
        start = sync.bytes_sent
        adam = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), LR)
        tokens = torch.randint(64, (STEPS, 2, 8), generator=torch.Generator().manual_seed(comm.rank))
        rounds: list[Any] = []
        for batch in tokens:
            loss = model(input_ids=batch, labels=batch).loss
            loss.backward()
            adam.step()
            rounds.append(sync.step(loss))
            adam.zero_grad()
        sync.finish()
        kept = all(torch.equal(p, frozen[n]) for n, p in model.named_parameters() if n in frozen)
    return {
        "adapters": {n: p.numel() for n, p in model.named_parameters() if p.requires_grad},
        "frozen": sum(p.numel() for p in frozen.values()),
        "frozen tensors": len(frozen),
        "start": start,
        "rounds": [(event.bytes_sent, event.calls) for event in rounds if event],
        "kept": kept,
        "weights": numbers(model),
    }


def check(found: list[dict[str, Any]]) -> None:
    for worker in found:
        adapters = sum(worker["adapters"].values())
        assert all("lora" in name for name in worker["adapters"])
        assert worker["frozen"] > 10 * adapters
        assert worker["kept"]
        # Two workers send half of a vector, twice, in an all-reduce: the adapters, and how much they weigh.
        assert [sent for sent, _ in worker["rounds"]] == [4 * (adapters + 1) + ROLL_CALL] * (STEPS // EVERY)
        # At the start rank 0's adapters, and of what is frozen 32 bytes a tensor; no more than that.
        assert worker["start"] < 4 * adapters + 32 * worker["frozen tensors"] + 200
    assert found[0]["weights"] == found[1]["weights"]


@pytest.mark.slow
def test_only_adapters_travel(pool: Pool) -> None:
    found = simulate(trained, 2)
    check(found)
    assert [worker["weights"] for worker in pool.run(trained, workers=2)] == [
        worker["weights"] for worker in found
    ]


def test_adapters_in_a_trainer_resume(tmp_path: Path) -> None:
    """The Trainer's checkpoints hold the adapters alone; the swarm's state is beside them."""
    from swarmstep.integrations.transformers import synchronize
    from tests.integrations.test_transformers import trainer_of

    def train(comm: Group, resume: bool) -> list[float]:
        with quiet():
            trainer = trainer_of(comm, str(tmp_path), network())
            synchronize(trainer, LocalSGD(when=Every(4)), comm)
            trainer.train(resume_from_checkpoint=f"{tmp_path}/{comm.rank}/checkpoint-6" if resume else None)
        return numbers(trainer.model)

    whole = simulate(lambda comm: train(comm, False), 2)
    saved = tmp_path / "0" / "checkpoint-6"
    assert (saved / "adapter_model.safetensors").exists()
    assert not (saved / "model.safetensors").exists()
    assert simulate(lambda comm: train(comm, True), 2) == whole
