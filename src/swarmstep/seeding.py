"""Randomness as a function of (seed, step, rank, ...): nothing to save, nothing shared, nothing global."""

from __future__ import annotations

import hashlib

import torch


def mix(*parts: int | str) -> int:
    """Return a seed in [0, 2**63) that depends on every part and on their order.

    The same parts give the same seed on every machine and Python version.
    """
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(*parts: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a fresh generator on `device`, seeded with `mix(*parts)`."""
    return torch.Generator(device).manual_seed(mix(*parts))


def seed_torch(seed: int, device: torch.device) -> None:
    """Seed torch's global generator of the CPU, and that of `device`.

    `torch.manual_seed` does so for all kinds of devices at 0.5 ms a call, and keeps each call until one is used.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
