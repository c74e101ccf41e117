"""Small integers as bytes: places of 12 bits, bins of two."""

from __future__ import annotations

import torch
from torch import Tensor


def packed_places(places: Tensor) -> Tensor:
    """Return places below 4096 as bytes, two in three; a last one alone takes three, too."""
    low, high = torch.cat([places, places.new_zeros(len(places) % 2)]).view(-1, 2).unbind(1)
    return torch.stack([low & 255, (low >> 8) | (high & 15) << 4, high >> 4], 1).to(torch.uint8).view(-1)


def places_of(packed: Tensor) -> Tensor:
    """Return the places, int64, that `packed_places` has packed."""
    first, second, third = packed.view(-1, 3).long().unbind(1)
    return torch.stack([first | (second & 15) << 8, second >> 4 | third << 4], 1).view(-1)


def packed_bins(bins: Tensor) -> Tensor:
    """Return bins below 4 as bytes, four in one."""
    padded = torch.cat([bins, bins.new_zeros(-len(bins) % 4)]).view(-1, 4)
    return (padded << torch.arange(0, 8, 2, device=bins.device)).sum(1).to(torch.uint8)


def bins_of(packed: Tensor) -> Tensor:
    """Return the bins, int64, that `packed_bins` has packed."""
    return (packed.long()[:, None] >> torch.arange(0, 8, 2, device=packed.device) & 3).view(-1)
