"""What an inner optimizer must offer, and one that stands around another."""

from __future__ import annotations

from typing import Any, Protocol


class Inner(Protocol):
    """Any torch.optim.Optimizer, or a `Wrapper` around one."""

    @property
    def param_groups(self) -> list[dict[str, Any]]: ...
    @property
    def state(self) -> Any: ...
    def step(self) -> Any: ...
    def zero_grad(self) -> None: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: dict[str, Any], /) -> None: ...


class Wrapper:
    """An optimizer that changes the gradients of another before its step.

    Args:
        optimizer: the other one, already made.
    """

    def __init__(self, optimizer: Inner) -> None:
        self.optimizer = optimizer

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Those of the other."""
        return self.optimizer.param_groups

    @property
    def state(self) -> Any:
        """That of the other."""
        return self.optimizer.state

    def zero_grad(self) -> None:
        """Forget the gradients."""
        self.optimizer.zero_grad()
