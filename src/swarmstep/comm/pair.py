"""A connection between two processes, which stands and falls alone."""

from __future__ import annotations

import contextlib
import hmac
import secrets
from datetime import timedelta

import torch
from torch import Tensor

from swarmstep.comm.process_groups import FORM_TIMEOUT, UNUSED_TAG, brief
from swarmstep.comm.secure.auth import ADVICE, NONCE, checked_secret, mac
from swarmstep.comm.torch_private import PrefixStore, TCPStore, pair_group
from swarmstep.errors import CommError

PROOF_TAG = UNUSED_TAG - 1


class Pair:
    """A gloo group of two ranks, apart from all other groups of this process.

    A peer that dies is noticed at once by whoever receives from it; one that stands still, when a wait has reached
    its limit. After an error nothing more goes through, and what a tensor then holds is not to be used.

    Args:
        store: a connection that nobody else uses meanwhile.
        name: under which the two meet, used once.
        rank: 0 for one of the two, 1 for the other.
        address: of this machine, by which the other reaches it.
        limit: seconds for the other to come.

    Raises:
        RuntimeError: it did not come.
    """

    def __init__(self, store: TCPStore, name: str, rank: int, address: str, limit: float) -> None:
        self._group = pair_group(PrefixStore(name, store), rank, address, limit)
        self._other = 1 - rank

    def send(self, data: Tensor, tag: int, seconds: float) -> None:
        """Send a tensor; raise RuntimeError if the peer is lost, or has not taken it within so many seconds."""
        self._group.send([data], self._other, tag).wait(timedelta(seconds=seconds))

    def receive(self, data: Tensor, tag: int, seconds: float) -> None:
        """Receive into a tensor; raise RuntimeError if the peer is lost, or sends nothing for so many seconds."""
        self._group.recv([data], self._other, tag).wait(timedelta(seconds=seconds))

    def close(self) -> None:
        """End the connection, with operations under way; the peer notices it at once."""
        with contextlib.suppress(RuntimeError):  # gloo closes it where a wait exceeds its limit
            self.receive(torch.zeros(1, dtype=torch.uint8), UNUSED_TAG, 0.001)


def prove_to(pair: Pair, rank: int, secret: bytes) -> None:
    """Prove to the other end of a new connection that this one knows the secret, and have it do the same.

    The proofs are HMACs of fresh random numbers of both, with the rank of who proves; rank 1 is the first. What
    follows on the connection is not protected.

    Args:
        pair: the connection; nothing has gone through it yet.
        rank: of this end, 0 or 1.
        secret: at least 16 bytes.

    Raises:
        CommError: the other end does not know it.
        UsageError: it is too short.
    """
    checked_secret(secret, "prove_to")
    nonces: list[bytes] = [b"", b""]
    nonces[rank] = secrets.token_bytes(NONCE)
    nonces[1 - rank] = _swapped(pair, rank, nonces[rank])

    def proof(of: int) -> bytes:
        return mac(secret, b"node", bytes([of]) + b"".join(nonces))

    if not hmac.compare_digest(_swapped(pair, rank, proof(rank)), proof(1 - rank)):
        raise CommError(f"did not prove to know the secret of this node; {ADVICE}")


def _swapped(pair: Pair, rank: int, own: bytes) -> bytes:
    """Send bytes, and return as many of the other end."""
    other = torch.empty(len(own), dtype=torch.uint8)
    mine = torch.frombuffer(bytearray(own), dtype=torch.uint8)
    try:
        for sends in (rank == 1, rank == 0):
            (pair.send if sends else pair.receive)(mine if sends else other, PROOF_TAG, FORM_TIMEOUT)
    except RuntimeError as error:
        raise CommError(f"did not prove to know the secret of this node ({brief(error)}); {ADVICE}") from error
    return other.numpy().tobytes()
