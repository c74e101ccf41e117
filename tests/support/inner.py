"""An inner optimizer with states, and a training loop with it, for tests of what rounds do with them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from helpers import Trainer, options
from swarmstep import Comm, Options, Strategy, Synchronizer

LR = 0.05
BETAS = 0.9, 0.99


class SmallAdam:
    """Adam without a correction of its start; torch's own would import its compiler in every process."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        self.state: dict[Tensor, dict[str, Any]] = {}

    @torch.no_grad()
    def step(self) -> None:
        for p in self.parameters:
            assert p.grad is not None
            names = ("exp_avg", "exp_avg_sq")
            own = self.state.setdefault(p, {"step": torch.tensor(0.0), **{n: torch.zeros_like(p) for n in names}})
            m, v = (own[name] for name in names)
            own["step"] += 1
            m.mul_(BETAS[0]).add_(p.grad, alpha=1 - BETAS[0])
            v.mul_(BETAS[1]).add_(p.grad * p.grad, alpha=1 - BETAS[1])
            p.sub_(LR * m / (v.sqrt() + 1e-8))

    def state_dict(self) -> dict[str, Any]:
        return {"state": [{n: t.clone() for n, t in self.state.get(p, {}).items()} for p in self.parameters]}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self.state = {p: {**own} for p, own in zip(self.parameters, saved["state"], strict=True) if own}


class AdamTrainer(Trainer):
    """The same loop, with states in the inner optimizer."""

    def __init__(self, strategy: Strategy, comm: Comm, seed: int = 0, **given: Any) -> None:
        super().__init__(strategy, comm, seed)
        self.optimizer = SmallAdam(self.model.parameters())
        chosen: Options = options(seed, optimizers=[self.optimizer], **given)
        self.sync = Synchronizer(self.model, strategy, comm, chosen)

    def moments(self) -> Tensor:
        """Return all first moments, then all second ones."""
        states = [self.optimizer.state.get(p, {}) for p in self.optimizer.parameters]
        return torch.cat([own[n].view(-1).clone() for n in ("exp_avg", "exp_avg_sq") for own in states if own])


def trained(comm: Comm, strategy: Strategy, steps: int, resume: int = 0, **given: Any) -> list[Tensor]:
    """Train; return weights and moments after each step, and the weights at the end."""
    trainer, seen = AdamTrainer(strategy, comm, **given), list[Tensor]()
    for _ in range(steps):
        trainer.step()
        seen += [trainer.weights(), trainer.moments()]
        if trainer.done == resume:
            saved = trainer.save()
            trainer = AdamTrainer(strategy, comm, **given)
            trainer.load(saved)
    trainer.sync.finish()
    return [*seen, trainer.weights()]
