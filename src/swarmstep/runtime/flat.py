"""A module as one flat vector x: the only place that knows how parameters and buffers lie in it."""

from __future__ import annotations

from itertools import accumulate, pairwise

import torch
from torch import Tensor, nn

from swarmstep.errors import UsageError
from swarmstep.runtime.module_tensors import (
    average_only,
    check_tensors,
    is_statistic,
    local_shard,
    module_tensors,
    persistent_buffers,
)
from swarmstep.signal import Layout


class Flat:
    """What of a module the workers share, as a vector x.

    In x: every trainable parameter once (tied parameters count once, those without a gradient count too), in
    the order of `named_parameters`, those that are averaged only (`module_tensors.average_only`) behind the
    others, then every persistent floating-point buffer that holds finite numbers. Of a sharded parameter (DTensor)
    this rank's shard. Not in x: frozen parameters, other buffers (integers, masks with infinities, empty ones), of
    which all ranks start with rank 0's; and non-persistent buffers, which stay each worker's own.

    x is float32, or float64 if any of its tensors is; on the device of the first parameter, or on `device`.
    Writing rounds to each tensor's own dtype.

    Args:
        module: with at least one trainable parameter.
        views: move the module's tensors into x, of which they are views from then on, so that nothing is
            copied in a round. Not where that would change what they are: tensors of several dtypes or
            devices, sharded, in shared memory, not contiguous, or overlapping others. They are copied then.
            A tensor that is given other memory later (by setting `.data`, say) is an error.
        fragments: in how many parts to lay x: whole leaf modules, dealt out in turn, each part with its
            parameters first.
        device: where x lives (None: with the first parameter).

    Raises:
        UsageError: nothing to train, a tensor that cannot be synchronized (it names it), or more fragments than
            modules with parameters.
    """

    def __init__(
        self, module: nn.Module, *, views: bool = False, fragments: int = 1, device: str | None = None
    ) -> None:
        self._module = module
        check_tensors(module)
        buffers = [name for name, buffer in persistent_buffers(module).items() if is_statistic(buffer)]
        self._buffers = frozenset(buffers)
        trained, only = [name for name, p in module.named_parameters() if p.requires_grad], average_only(module)
        parameters = [name for name in trained if name not in only]
        if not parameters:
            raise UsageError("the model has no trainable parameter: expected one with requires_grad=True")
        averaged = [name for name in trained if name in only]
        self._averaged = frozenset(averaged)
        self._plain = [*parameters, *averaged, *buffers]
        self._names = _dealt(parameters, [*averaged, *buffers], fragments)
        self._expected: dict[str, int] = {}  # the elements of each tensor, by name; empty until they are known
        tensors = self._tensors()
        self._expected = {name: tensor.numel() for name, tensor in tensors.items()}
        self.fragments = tuple(self._measure(names, tensors) for names in self._names)
        self.layout = self._measure([name for names in self._names for name in names], tensors)
        self._starts = list(accumulate((sum(f.sizes) for f in self.fragments), initial=0))
        double = any(t.dtype == torch.float64 for t in tensors.values())
        self.dtype = torch.float64 if double else torch.float32
        self.device = torch.device(device) if device else next(iter(tensors.values())).device
        self.exact = all(t.dtype == self.dtype for t in tensors.values())  # whether writing rounds nothing
        self._opened: dict[int, Tensor] = {}  # memory for `open`, by fragment
        self._x: Tensor | None = None  # once the module's tensors are views of it
        if views and self._may_be_views(tensors):
            self._adopt(tensors)

    def _tensors(self) -> dict[str, Tensor]:
        """Return what lies in x, in its order, as the module has it now."""
        tensors: dict[str, Tensor] = {n: p for n, p in self._module.named_parameters() if p.requires_grad}
        tensors |= {n: b for n, b in persistent_buffers(self._module).items() if n in self._buffers}
        expected = [name for names in self._names for name in names]
        odd = sorted(tensors.keys() ^ set(expected))
        if odd:
            raise UsageError(
                f"parameter or buffer {odd[0]!r} has been frozen, unfrozen, tied, added or removed since the "
                "Synchronizer was made; make a new Synchronizer at the same step on all ranks"
            )
        found = {name: local_shard(tensors[name]) for name in expected}
        for name, count in self._expected.items():
            if found[name].numel() != count:
                raise UsageError(
                    f"{name!r} has {found[name].numel()} elements and had {count} when the Synchronizer was made; "
                    "if the first batch gives it its shape, run one through the model before making it"
                )
        return found

    def _measure(self, names: list[str], tensors: dict[str, Tensor]) -> Layout:
        sizes = {name: tensors[name].numel() for name in names}
        averaged = sum(size for name, size in sizes.items() if name in self._averaged)
        buffers = sum(size for name, size in sizes.items() if name in self._buffers)
        parameters = sum(sizes.values()) - averaged - buffers
        shapes = tuple(tuple(tensors[name].shape) for name in names)
        return Layout(tuple(names), tuple(sizes.values()), parameters, averaged, shapes)

    def _may_be_views(self, tensors: dict[str, Tensor]) -> bool:
        """Return whether the tensors stay what they are when they become views of one vector."""
        everything: list[Tensor] = [*self._module.parameters(), *self._module.buffers()]
        return (
            all(
                type(t) in (Tensor, nn.Parameter)
                and (t.dtype, t.device) == (self.dtype, self.device)
                and t.is_contiguous()
                and not t.is_shared()
                for t in tensors.values()
            )
            and all(type(t) in (Tensor, nn.Parameter) for t in everything)
            and not _overlap(everything)
        )

    @torch.no_grad()
    def _adopt(self, tensors: dict[str, Tensor]) -> None:
        """Make the tensors views of x."""
        self._x = torch.empty(sum(self.layout.sizes), dtype=self.dtype, device=self.device)
        for piece, tensor in zip(self._x.split(self.layout.sizes), tensors.values(), strict=True):
            piece.copy_(tensor.reshape(-1))
            tensor.data = piece.view(tensor.shape)

    def _shared(self) -> Tensor:
        """Return x; raise UsageError where a tensor of the module is no view of it any more."""
        assert self._x is not None
        place, size = self._x.data_ptr(), self._x.element_size()
        for name, tensor in self._tensors().items():
            if (tensor.dtype, tensor.device) != (self.dtype, self._x.device):
                raise UsageError(
                    f"the model was changed since the Synchronizer was made: {name!r} is {tensor.dtype} on "
                    f"{tensor.device}, was {self.dtype} on {self._x.device}; make a new Synchronizer on all ranks"
                )
            if tensor.data_ptr() != place and tensor.numel():
                raise UsageError(
                    f"views: {name!r} was given other memory since the Synchronizer was made (its .data was set, "
                    "or it was replaced); use Options(views=False), which follows that"
                )
            place += tensor.numel() * size
        return self._x

    @torch.no_grad()
    def release(self) -> None:
        """Give the module's tensors memory of their own again."""
        self._opened.clear()
        if self._x is not None:
            self._shared()
            for tensor in self._tensors().values():
                tensor.data = tensor.data.clone()
            self._x = None

    @torch.no_grad()
    def open(self, fragment: int = 0) -> Tensor:
        """Return x, or that part of it: itself where the module's tensors are views of it, else a copy.

        Whoever changes it calls `close` afterwards. The copy is valid until the next call for this part.
        """
        if self._x is not None:
            return self._part(self._shared(), fragment)
        if fragment not in self._opened:
            size = sum(self.fragments[fragment].sizes)
            self._opened[fragment] = torch.empty(size, dtype=self.dtype, device=self.device)
        return self._fill(self._opened[fragment], fragment)

    def close(self, x: Tensor, fragment: int = 0) -> None:
        """Take over what was done to the x of `open`."""
        if self._x is None or x.data_ptr() != self._part(self._x, fragment).data_ptr():
            self.write(x, fragment)
        else:  # autograd notices that what it has saved for a backward pass was changed
            torch.autograd.graph.increment_version(list(self._tensors().values()))

    def _part(self, x: Tensor, fragment: int) -> Tensor:
        return x[self._starts[fragment] : self._starts[fragment + 1]]

    @torch.no_grad()
    def read(self, fragment: int | None = None) -> Tensor:
        """Return a copy of x, or of one part of it."""
        if self._x is not None:
            x = self._shared()
            return (x if fragment is None else self._part(x, fragment)).clone()
        size = sum(self._layout(fragment).sizes)
        return self._fill(torch.empty(size, dtype=self.dtype, device=self.device), fragment)

    def _fill(self, x: Tensor, fragment: int | None) -> Tensor:
        tensors, layout = self._tensors(), self._layout(fragment)
        for piece, name in zip(x.split(layout.sizes), layout.names, strict=True):
            piece.copy_(tensors[name].reshape(-1))
        return x

    @torch.no_grad()
    def write(self, x: Tensor, fragment: int | None = None) -> None:
        """Set the module's tensors from x, or those of one part of it."""
        tensors, layout = self._tensors(), self._layout(fragment)
        for piece, name in zip(x.split(layout.sizes), layout.names, strict=True):
            tensors[name].copy_(piece.view(tensors[name].shape))

    def in_plain_order(self, x: Tensor) -> Tensor:
        """Return x as it lies without fragments: all parameters, those averaged only at last, then all buffers."""
        pieces = dict(zip(self.layout.names, x.split(self.layout.sizes), strict=True))
        return torch.cat([pieces[name] for name in self._plain])

    def _layout(self, fragment: int | None) -> Layout:
        return self.layout if fragment is None else self.fragments[fragment]

    def _parameters(self) -> list[Tensor]:
        """Return the module's own parameters, in their order in x."""
        own = dict(self._module.named_parameters())
        return [own[name] for name in self._tensors() if name not in self._buffers]

    @torch.no_grad()
    def gradient(self) -> Tensor:
        """Return the gradients of all parameters in x as a vector, zero where there is none."""
        layout = self.layout
        g = torch.zeros(layout.parameters + layout.averaged, dtype=self.dtype, device=self.device)
        offset = 0
        for parameter in self._parameters():
            size = local_shard(parameter).numel()
            if parameter.grad is not None:
                grad = local_shard(parameter.grad)
                g[offset : offset + size].copy_((grad.to_dense() if grad.is_sparse else grad).reshape(-1))
            offset += size
        return g

    @torch.no_grad()
    def write_gradient(self, g: Tensor) -> None:
        """Set the gradients of the parameters from a vector like that of `gradient`."""
        offset = 0
        for parameter in self._parameters():
            if parameter.grad is None or parameter.grad.is_sparse:
                parameter.grad = torch.empty_like(parameter)
            grad = local_shard(parameter.grad)
            grad.copy_(g[offset : offset + grad.numel()].view(grad.shape))
            offset += grad.numel()

    def versions(self) -> int:
        """Return a number that grows whenever an operation of torch changes one of the parameters."""
        return sum(parameter._version for parameter in self._parameters())

    def describe(self) -> dict[str, str]:
        """Return name -> dtype and shape of every parameter and persistent buffer, to compare between ranks."""
        return {
            name: f"{str(tensor.dtype).removeprefix('torch.')} {list(local_shard(tensor).shape)}"
            + ("" if name in self.layout.names else ", not trained")
            + (", averaged only" if name in self._averaged else "")
            for name, tensor in module_tensors(self._module).items()
        }


def _dealt(parameters: list[str], others: list[str], fragments: int) -> list[list[str]]:
    """Return the names in each fragment, parameters first; what belongs to one leaf module stays together."""
    owners = list(dict.fromkeys(name.rpartition(".")[0] for name in parameters))
    if not 1 <= fragments <= len(owners):
        raise UsageError(
            f"fragments: expected 1 to {len(owners)}, the number of modules with parameters of their own, "
            f"found {fragments}"
        )
    turn = {owner: place % fragments for place, owner in enumerate(owners)}
    dealt: list[list[str]] = [[] for _ in range(fragments)]
    for name in [*parameters, *others]:
        dealt[turn.get(name.rpartition(".")[0], 0)].append(name)
    return dealt


def _overlap(tensors: list[Tensor]) -> bool:
    """Return whether any two of the tensors share memory."""
    spans = sorted((t.data_ptr(), t.data_ptr() + t.nbytes) for t in tensors if t.numel())
    return any(end > start for (_, end), (start, _) in pairwise(spans))
