"""Adam with a momentum so slow that it outlives the steps between two rounds (MT-DAO)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from swarmstep.errors import UsageError


class SlowMomentumAdam(torch.optim.Optimizer):
    """AdamW whose step mixes the gradient with a slow momentum.

    ::

        u = b u + (1 - b) g
        v = b2 v + (1 - b2) g^2
        x = (1 - lr wd) x - lr (w u / (1 - b^t) + (1 - w) g) / (sqrt(v / (1 - b2^t)) + eps)

    After K local steps a worker's momentum holds b^K of what it was: with K = 30, 4 % if b is 0.9, and 97 % if it
    is 0.999. So a slow one may be averaged seldom: ``Options(optimizer_state={"slow_avg": 3, "exp_avg_sq": 6})``.
    With w = 1 this is torch's AdamW with betas (b, b2); with w = 0 there is no momentum.

    Args:
        params: as of any optimizer of torch; groups may have an lr and a weight_decay of their own.
        lr: at least 0.
        slow: b, 0 to below 1.
        weight: w, of the momentum in the step, 0 to 1.
        beta2: b2, 0 to below 1.
        eps: above 0.
        weight_decay: wd, at least 0.

    Raises:
        UsageError: a value is out of its range.

    Cost: no traffic of its own; two vectors of the size of the parameters.

    Source: MT-DAO, arXiv 2510.05361 (ICLR 2026), from a summary: slow momenta, b about 0.999, in Adam's step, and
    states that are seldom averaged. The form, one momentum and the gradient, is that of quasi-hyperbolic Adam (Ma
    and Yarats, arXiv 1810.06801, from memory); the weight 0.7 and the corrections of the start are our choice.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        slow: float = 0.999,
        weight: float = 0.7,
        beta2: float = 0.999,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        if not (0.0 <= slow < 1.0 and 0.0 <= beta2 < 1.0 and 0.0 <= weight <= 1.0):
            raise UsageError(
                "SlowMomentumAdam: expected slow and beta2 from 0 to below 1 and weight 0 to 1, found "
                f"{slow}, {beta2} and {weight}"
            )
        if not (lr >= 0.0 and eps > 0.0 and weight_decay >= 0.0):
            raise UsageError(
                "SlowMomentumAdam: expected lr and weight_decay from 0 and eps above 0, found "
                f"{lr}, {weight_decay} and {eps}"
            )
        settings = {"slow": slow, "weight": weight, "beta2": beta2, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {"lr": lr, **settings})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take a step; return what the closure returns, if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step(parameter, parameter.grad, group)
        return loss

    def _step(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state: dict[str, Any] = self.state[parameter]
        if not state:
            state["step"] = torch.tensor(0.0)
            state["slow_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        state["step"] += 1
        t, slow, beta2, weight = float(state["step"]), group["slow"], group["beta2"], group["weight"]
        u, v = state["slow_avg"], state["exp_avg_sq"]
        u.mul_(slow).add_(gradient, alpha=1 - slow)
        v.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        mixed = gradient.mul(1 - weight).add_(u, alpha=weight / (1 - slow**t))
        scale = (v / (1 - beta2**t)).sqrt_().add_(group["eps"])
        parameter.mul_(1 - group["lr"] * group["weight_decay"]).addcdiv_(mixed, scale, value=-group["lr"])
