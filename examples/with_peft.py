"""LoRA adapters in a swarm: they are all that travels.

torchrun --nproc-per-node 2 examples/with_peft.py
"""

from __future__ import annotations

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from swarmstep import DiLoCo, DistComm, Every, Synchronizer


def main() -> None:
    torch.set_num_threads(1)
    comm = DistComm.from_env()
    torch.manual_seed(0)  # the model below the adapters is the same on all workers, so none of it is ever sent
    sizes = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4}
    below = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=4))
    model = get_peft_model(below, LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    adapters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(adapters, lr=3e-3)
    sync = Synchronizer(model, DiLoCo(when=Every(10)), comm)
    if comm.rank == 0:
        whole = sum(parameter.nbytes for parameter in model.parameters())
        print(f"the model {whole:,} bytes, adapters {sum(a.nbytes for a in adapters):,}")
        print(
            f"sent at the start: {sync.bytes_sent:,}, of which 32 for each frozen tensor, to see that it is equal"
        )
    data = torch.Generator().manual_seed(comm.rank)
    for step in range(50):
        tokens = (torch.randint(64, (8, 1), generator=data) + torch.arange(16)) % 64
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        event = sync.step(loss)
        optimizer.zero_grad()
        if event and comm.rank == 0:
            print(f"step {step + 1}: loss {float(loss.detach()):.3f}; sent in the round: {event.bytes_sent:,}")
    sync.finish()
    comm.close()


if __name__ == "__main__":
    main()
