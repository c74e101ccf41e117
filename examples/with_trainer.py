"""Hugging Face's Trainer in a swarm; run it again, and it goes on from its last checkpoint:

torchrun --nproc-per-node 2 examples/with_trainer.py
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from swarmstep import DiLoCo, DistComm, Every
from swarmstep.integrations.alone import alone
from swarmstep.integrations.transformers import synchronize


def texts(rank: int) -> list[dict[str, torch.Tensor]]:
    """Return a worker's own examples: numbers that count up from one that is drawn."""
    first = torch.randint(32, (512, 1), generator=torch.Generator().manual_seed(rank))
    return [{"input_ids": row, "labels": row} for row in (first + torch.arange(16)) % 32]


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    comm = DistComm.from_env()
    sizes = {"vocab_size": 32, "n_positions": 16, "n_embd": 32, "n_layer": 2, "n_head": 2}
    own = folder / f"worker-{comm.rank}"  # each worker has checkpoints of its own
    with alone():  # what is made in here knows nothing of the other workers: no DistributedDataParallel
        arguments = TrainingArguments(
            str(own),
            max_steps=120,
            save_steps=50,
            learning_rate=3e-3,
            logging_steps=40,
            report_to=[],
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
        )
        model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))
        trainer = Trainer(model, arguments, train_dataset=texts(comm.rank))
    # The one added line.
    sync = synchronize(trainer, DiLoCo(when=Every(20)), comm)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(own)) if own.exists() else None)
    if comm.rank == 0:
        trainer.save_model(str(folder / "result"))
        print(f"{sync.steps} steps, {sync.rounds} rounds, {sync.bytes_sent:,} bytes sent; {folder / 'result'}")
    comm.close()


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/with-trainer"))
